// Package registry knows the workers: identity, lease, capacity, what they
// offer and whether they take jobs. It is pure: the time is handed in and one
// goroutine owns it.
package registry

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// State is a worker's state.
type State uint8

// The states; zero is no worker.
const (
	None State = iota
	Online
	Draining
	Offline
	Deregistered
)

// String returns the state in upper case.
func (s State) String() string {
	names := [...]string{"NONE", "ONLINE", "DRAINING", "OFFLINE", "DEREGISTERED"}
	return names[min(int(s), len(names)-1)]
}

// Leased tells whether a worker in this state has a lease that lasts.
func (s State) Leased() bool { return s == Online || s == Draining }

// Worker is what the scheduler knows of one worker. Values that were handed
// out are never written again.
type Worker struct {
	ID          job.WorkerID
	Name        string
	Address     string
	Labels      map[string]string
	Slots       int
	BootID      string
	InstanceID  string
	Version     string
	Commands    []string // allowed by its policy without a runner
	Uploads     bool     // its policy allows scripts that are sent with a request
	Runners     []job.RunnerInfo
	Scripts     job.ScriptIndex
	Conditions  []job.Condition
	Trouble     job.Condition // what the scheduler itself has to say; zero: nothing
	Unrecorded  []job.Report  // of attempts that it has and the records do not, by job and attempt
	Listed      bool          // it has told what runners and scripts it has since it came
	Commanded   bool          `json:"-"` // the scheduler has a session with it in which it has told all it has
	Running     int           // attempts that the scheduler has placed there
	State       State
	Drain       bool // by an operator
	DrainReason string
	DrainAfter  time.Duration // when jobs that still run are stopped; 0: never
	Leaving     bool          // by its own word
	LeaseEnd    time.Time     // monotonic; zero: no lease since the scheduler's start
	// Contact is when it was last heard, Lease the longest that it was ever
	// given, Lapses how often it has run out by the worker's count (P4 c).
	Contact time.Time `json:"-"`
	Lease   time.Duration
	Lapses  uint64
}

// Registration is how a worker introduces itself.
type Registration struct {
	ID         job.WorkerID // zero the first time
	Name       string       // from its certificate
	Address    string
	Labels     map[string]string
	Slots      int
	BootID     string
	InstanceID string
	Version    string
	Runners    []job.RunnerInfo
	Commands   []string
	Uploads    bool
	Lapses     uint64
}

// Registry holds the workers of a cluster.
type Registry struct {
	lease  time.Duration
	byID   map[job.WorkerID]*entry
	byName map[string]*entry
	next   time.Time // no lease runs out before; zero: there is none
	views  map[string]*view
	slots  int   // numbers given to entries
	spare  []int // of them, those that are free again
}

type entry struct {
	Worker
	slot    int                 // its number in the tables of the views
	scripts map[string][]string // path -> folders
}

// New returns an empty registry whose leases last for lease.
func New(lease time.Duration) *Registry {
	return &Registry{
		lease: lease, byID: map[job.WorkerID]*entry{}, byName: map[string]*entry{}, views: map[string]*view{},
	}
}

// Lease is how long a worker lives without a heartbeat.
func (r *Registry) Lease() time.Duration { return r.lease }

// Load puts a worker back that was known before a restart of the scheduler. It
// is OFFLINE until it registers again.
func (r *Registry) Load(w Worker) {
	if w.State != Deregistered {
		w.State = Offline
	}
	w.Running, w.LeaseEnd, w.Contact, w.Listed, w.Commanded = 0, time.Time{}, time.Time{}, false, false
	w.Lease = max(w.Lease, r.lease)
	r.put(&entry{Worker: w})
}

func (r *Registry) put(e *entry) {
	e.index()
	if r.byID[e.ID] == nil {
		e.slot = r.slotFor()
	}
	r.byID[e.ID] = e
	r.byName[e.Name] = e
	r.moved(e)
}

func (e *entry) index() {
	e.scripts = make(map[string][]string, len(e.Scripts.Scripts))
	for _, s := range e.Scripts.Scripts {
		e.scripts[s.Path] = append(e.scripts[s.Path], s.Folder)
	}
}

// Register makes or renews a worker. fresh is the UUID of a new one. A second
// process with the same name is refused while the lease of the first lasts,
// unless it shows the UUID: then it is the restarted first.
func (r *Registry) Register(now time.Time, reg Registration, fresh job.WorkerID) (Worker, error) {
	const op = "register worker"
	if reg.Slots < 1 {
		return Worker{}, errs.Field(op, "slots", "SLOTS", "%d is less than 1", reg.Slots)
	}
	if reg.Address == "" {
		return Worker{}, errs.Field(op, "address", "ADDRESS", "it is empty")
	}
	e := r.byName[reg.Name]
	known, idKnown := r.byID[reg.ID]
	if idKnown && known != e {
		return Worker{}, errs.E(op, errs.Denied, "WORKER_NAME",
			fmt.Errorf("the id %s belongs to the worker %q, the certificate to %q", reg.ID, known.Name, reg.Name))
	}
	if e != nil && !idKnown && e.InstanceID != reg.InstanceID && now.Before(e.LeaseEnd) {
		return Worker{}, errs.E(op, errs.Exists, "NAME_TAKEN", fmt.Errorf("a worker named %q runs already at %s", reg.Name, e.Address)).
			WithHint("give each worker a certificate of its own name; if that one is gone, its lease ends soon")
	}
	if e == nil {
		e = &entry{Worker: Worker{ID: fresh, Name: reg.Name}}
	}
	if e.InstanceID != reg.InstanceID {
		e.Listed, e.Trouble = false, job.Condition{}
	}
	e.Address, e.Labels, e.Slots, e.BootID = reg.Address, reg.Labels, reg.Slots, reg.BootID
	e.InstanceID, e.Version, e.Runners, e.Commands = reg.InstanceID, reg.Version, reg.Runners, reg.Commands
	e.Uploads = reg.Uploads
	e.Leaving, e.Lapses = false, reg.Lapses
	if e.State == Deregistered {
		e.Lease = 0 // it has left, and what it was given with it
	}
	r.grant(now, e)
	e.State = e.present()
	r.put(e)
	return e.Worker, nil
}

// grant renews a lease.
func (r *Registry) grant(now time.Time, e *entry) {
	e.Contact, e.LeaseEnd, e.Lease = now, now.Add(r.lease), max(e.Lease, r.lease)
	if r.next.IsZero() || e.LeaseEnd.Before(r.next) {
		r.next = e.LeaseEnd
	}
}

// present is the state of a worker whose lease is valid.
func (e *entry) present() State {
	if e.Drain || e.Leaving {
		return Draining
	}
	return Online
}

// Heartbeat renews a lease. changed tells whether anything but the lease did.
func (r *Registry) Heartbeat(now time.Time, id job.WorkerID, leaving bool, lapses uint64, cs []job.Condition) (w Worker, changed bool, err error) {
	e := r.byID[id]
	if e == nil || e.State == Deregistered {
		return Worker{}, false, unknown("renew lease", id.String())
	}
	before, longest, full := e.State, e.Lease, e.diskFull()
	r.grant(now, e)
	e.Leaving, e.Lapses = leaving, max(e.Lapses, lapses)
	e.State = e.present()
	changed = before != e.State || longest != e.Lease || !slices.EqualFunc(cs, e.Conditions, func(a, b job.Condition) bool {
		return a.Type == b.Type && a.Message == b.Message
	})
	e.Conditions = cs
	if before != e.State || full != e.diskFull() {
		r.moved(e)
	}
	return e.Worker, changed, nil
}

func unknown(op, ref string) error {
	return errs.E(op, errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("there is no worker %q", ref)).
		WithHint(`"drover workers" lists them`)
}

// Deregister ends a membership on purpose.
func (r *Registry) Deregister(id job.WorkerID) (Worker, error) {
	e := r.byID[id]
	if e == nil {
		return Worker{}, unknown("deregister worker", id.String())
	}
	e.State, e.LeaseEnd = Deregistered, time.Time{}
	r.moved(e)
	return e.Worker, nil
}

// Expire turns workers whose lease ran out OFFLINE and returns them.
func (r *Registry) Expire(now time.Time) []Worker {
	if r.next.IsZero() || now.Before(r.next) {
		return nil
	}
	var out []Worker
	r.next = time.Time{}
	for _, e := range r.byID {
		switch {
		case e.State != Online && e.State != Draining:
		case !now.Before(e.LeaseEnd):
			e.State = Offline
			r.moved(e)
			out = append(out, e.Worker)
		case r.next.IsZero() || e.LeaseEnd.Before(r.next):
			r.next = e.LeaseEnd
		}
	}
	slices.SortFunc(out, func(a, b Worker) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// NextExpiry is when Expire has to look again; zero is never. No lease runs out
// before. Most are renewed until then, so it is not worth knowing which is the
// first: with many workers that would be asked far more often than it is needed.
func (r *Registry) NextExpiry() time.Time { return r.next }

// SetDrain changes whether an operator wants the worker drained, and after what time the
// jobs that still run there are stopped.
func (r *Registry) SetDrain(id job.WorkerID, drain bool, reason string, after time.Duration) (Worker, error) {
	e := r.byID[id]
	if e == nil {
		return Worker{}, unknown("drain worker", id.String())
	}
	e.Drain, e.DrainReason, e.DrainAfter = drain, reason, after
	if e.State.Leased() {
		e.State = e.present()
		r.moved(e)
	}
	return e.Worker, nil
}

// SetBoot notes the boot of a worker's host, which may speak before it has
// registered again.
func (r *Registry) SetBoot(id job.WorkerID, boot string) {
	if e := r.byID[id]; e != nil {
		e.BootID = boot
	}
}

// SetLapses notes how often a worker's lease has run out, which its session may
// tell before it has registered again.
func (r *Registry) SetLapses(id job.WorkerID, n uint64) {
	if e := r.byID[id]; e != nil {
		e.Lapses = n
	}
}

// SetCommanded notes whether the scheduler can command a worker: its heartbeats do not
// tell.
func (r *Registry) SetCommanded(id job.WorkerID, can bool) {
	if e := r.byID[id]; e != nil && e.Commanded != can {
		e.Commanded = can
		r.moved(e)
	}
}

// SetScripts replaces what scripts a worker offers.
func (r *Registry) SetScripts(id job.WorkerID, x job.ScriptIndex) {
	if e := r.byID[id]; e != nil {
		e.Scripts, e.Listed = x, true
		e.index()
		r.moved(e)
	}
}

// SetRunners replaces what runners a worker offers.
func (r *Registry) SetRunners(id job.WorkerID, rs []job.RunnerInfo) {
	if e := r.byID[id]; e != nil {
		e.Runners = rs
		r.moved(e)
	}
}

// Types of the conditions that a scheduler adds to a worker's own.
const (
	LinkBreaks = "LINK_BREAKS"
	NoSession  = "NO_SESSION"
	OldRecords = job.ReasonOldRecords
	Unrecorded = "UNRECORDED_JOBS"
)

// SetTrouble notes what is wrong between the scheduler and a worker, or with an empty
// message that nothing is. changed reports whether that is new.
func (r *Registry) SetTrouble(id job.WorkerID, now time.Time, kind, message string) (changed bool) {
	e := r.byID[id]
	if e == nil || e.Trouble.Message == message {
		return false
	}
	if e.Trouble = (job.Condition{}); message != "" {
		e.Trouble = job.Condition{Type: kind, Message: message, Since: now}
	}
	return true
}

// SetUnrecorded replaces the attempts that a worker has and the records do not.
func (r *Registry) SetUnrecorded(id job.WorkerID, list []job.Report) {
	if e := r.byID[id]; e != nil {
		e.Unrecorded = list
	}
}

// ScriptPaths returns the paths of the worker's scripts by their sums, for those sums
// that the reports have.
func (w *Worker) ScriptPaths(reports []job.Report) map[string]string {
	paths := map[string]string{}
	for i := range reports {
		if sum := reports[i].ScriptSHA256; sum != "" {
			paths[sum] = ""
		}
	}
	for i := range w.Scripts.Scripts {
		s := &w.Scripts.Scripts[i]
		if path, asked := paths[s.SHA256]; asked && path == "" {
			paths[s.SHA256] = s.Path
		}
	}
	return paths
}

// Occupy adds n attempts to those placed on a worker; n may be negative.
func (r *Registry) Occupy(id job.WorkerID, n int) {
	if e := r.byID[id]; e != nil {
		e.Running += n
		r.moved(e)
	}
}

// Remove forgets a worker.
func (r *Registry) Remove(id job.WorkerID) {
	if e := r.byID[id]; e != nil {
		delete(r.byID, id)
		delete(r.byName, e.Name)
		r.gone(e)
	}
}

// Get returns a worker by id.
func (r *Registry) Get(id job.WorkerID) (Worker, bool) {
	if e := r.byID[id]; e != nil {
		return e.Worker, true
	}
	return Worker{}, false
}

// Find returns a worker by its name, its id, or the beginning or end of its id.
func (r *Registry) Find(ref string) (Worker, error) {
	if e := r.byName[ref]; e != nil {
		return e.Worker, nil
	}
	if id, err := uuid.Parse(ref); err == nil {
		if e := r.byID[id]; e != nil && id.String() == ref {
			return e.Worker, nil
		}
	}
	id, err := Expand(ref, maps.Keys(r.byID))
	if err != nil {
		return Worker{}, err
	}
	return r.byID[id].Worker, nil
}

// Expand returns the one id among several that a short reference, as lists show it, is
// the beginning or the end of. NotFound, reason WORKER_UNKNOWN, when there is none, or
// more than one.
func Expand(ref string, ids iter.Seq[job.WorkerID]) (job.WorkerID, error) {
	var found []job.WorkerID
	for id := range ids {
		if job.Abbreviates(ref, id) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return job.WorkerID{}, unknown("find worker", ref)
	case 1:
		return found[0], nil
	default:
		return job.WorkerID{}, errs.E("find worker", errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("%q stands for several workers", ref)).
			WithHint("give more digits, or the name")
	}
}

// All returns the workers by name.
func (r *Registry) All() []Worker {
	es := r.sorted()
	out := make([]Worker, len(es))
	for i, e := range es {
		out[i] = e.Worker
	}
	return out
}

func (r *Registry) sorted() []*entry {
	return slices.SortedFunc(maps.Values(r.byID), func(a, b *entry) int { return cmp.Compare(a.Name, b.Name) })
}

// offers tells whether a worker publishes a script. A path may begin with
// trailing names of its folder: /srv/worker/scripts holds count.sh as
// count.sh, scripts/count.sh and worker/scripts/count.sh. Only the last of them
// is known here; the worker looks at the whole path.
func (e *entry) offers(script string) bool {
	if len(e.scripts[script]) > 0 {
		return true
	}
	for i := range len(script) {
		if script[i] != '/' {
			continue
		}
		prefix, rest := script[:i], script[i+1:]
		for _, folder := range e.scripts[rest] {
			name, _, _ := strings.Cut(folder, "~") // scripts~2 is a second folder of that name
			if path.Base(prefix) == name {
				return true
			}
		}
	}
	return false
}

// serves tells whether a worker can run a command, with or without a script.
func (e *entry) serves(command, path string) bool {
	if path != "" {
		for _, r := range e.Runners {
			if slices.Contains(r.Commands, command) && r.State == "ready" {
				return true
			}
		}
	}
	return slices.Contains(e.Commands, command) || slices.Contains(e.Commands, "*")
}
