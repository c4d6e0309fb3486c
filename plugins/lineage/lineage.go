// Package lineage tells which attempt a process comes from where no cgroup does,
// whatever became of its session, its parents and its environment.
//
// The soft limit of file locks is a number that a process inherits from its parent
// over fork and execve(2) and that no kernel since 2.4.25 looks at (getrlimit(2),
// RLIMIT_LOCKS). So a process carries the attempt's number in it until it asks for
// another one on purpose.
package lineage

import (
	"bytes"
	"errors"
	"hash/fnv"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
)

// Tag is the number of an attempt; None is that of no attempt.
type Tag uint64

// None is what Read returns for a process without a tag.
const None Tag = 0

// Tags lie in the second quarter of all numbers: no limit that somebody sets by hand
// is one, and neither is "unlimited".
const (
	first = 1 << 62
	last  = 1<<63 - 1
)

// resource is RLIMIT_LOCKS, the same on all architectures (asm-generic/resource.h).
const resource = 10

// Of returns the tag of an attempt.
func Of(id string) Tag {
	if id == "" {
		return None
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // a hash takes all
	return Tag(first | h.Sum64()&(first-1))
}

// Wear gives this process a tag; what it forks from now on has it, too. It returns
// the way back. A host that does not allow the limit leaves the process without.
func Wear(t Tag) (takeOff func()) {
	var before unix.Rlimit
	if err := unix.Prlimit(0, resource, nil, &before); err != nil {
		return func() {}
	}
	if err := unix.Prlimit(0, resource, &unix.Rlimit{Cur: uint64(t), Max: before.Max}, nil); err != nil {
		return func() {}
	}
	return func() { _ = unix.Prlimit(0, resource, &before, nil) } // allowed: it was so before
}

// Read returns the tag of a process.
func Read(pid int) Tag {
	var limit unix.Rlimit
	err := unix.Prlimit(pid, resource, nil, &limit)
	if errors.Is(err, unix.EPERM) { // another user's, such as a set-user-ID program
		limit.Cur = fromProc(pid)
	} else if err != nil {
		return None
	}
	if limit.Cur < first || limit.Cur > last {
		return None
	}
	return Tag(limit.Cur)
}

// fromProc reads the limit from /proc/PID/limits, which everybody may.
func fromProc(pid int) uint64 {
	text, err := kernfile.Read("/proc/"+strconv.Itoa(pid)+"/limits", make([]byte, 4<<10))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("Max file locks"))
	words := bytes.Fields(rest)
	if len(words) == 0 {
		return 0
	}
	n, _ := strconv.ParseUint(string(words[0]), 10, 64) // "unlimited" is no tag
	return n
}
