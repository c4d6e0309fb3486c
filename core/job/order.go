package job

import "time"

// StartOrder is a scheduler's command to start one attempt. Slices and maps of
// its spec are read only.
type StartOrder struct {
	Key
	Fence  Fence
	Spec   Spec
	BootID string // boot of the host that it is meant for; "" is any
	Lapses uint64 // of the worker's lease when it was given; with StopItself only
	// Input is how many bytes of input the spec still lacks: the scheduler reads them
	// when it sends the order.
	Input int64
	// Refusal says what the worker's version cannot read in the order. The spec is
	// then not whole, and the attempt is to be rejected.
	Refusal error
}

// StopOrder is a scheduler's command to end one attempt.
type StopOrder struct {
	Key
	Fence  Fence
	Grace  *time.Duration // nil: the spec's
	Reason string         // ReasonUser, ReasonDrain, ...
}

// RunnerInfo describes one runner plugin of a worker.
type RunnerInfo struct {
	Name, Version, SHA256 string
	State                 string // ready, starting, draining, unhealthy or refused
	Jobs                  int
	Commands              []string
	Message               string // why it is refused or unhealthy
}

// ScriptInfo describes one published script of a worker.
type ScriptInfo struct {
	Path    string // relative to its folder
	Folder  string // name of the script folder
	SHA256  string
	Size    int64
	ModTime time.Time
}

// Bytes returns the size of its texts.
func (s *ScriptInfo) Bytes() int { return len(s.Path) + len(s.Folder) + len(s.SHA256) }

// ScriptIndex is the whole list of a worker's scripts.
type ScriptIndex struct {
	Generation uint64
	Scripts    []ScriptInfo
}

// Condition is something about a worker that people should know.
type Condition struct {
	Type    string // stable code such as DISK_LOW
	Message string
	Since   time.Time
}
