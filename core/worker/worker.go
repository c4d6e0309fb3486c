// Package worker runs attempts on one host: it decides about orders, starts and
// stops processes through runner plugins, takes them over after a restart, and
// reports what became of them.
//
// A pure Machine decides; one loop feeds it, writes its records to the journal
// in one batch, and only then carries out what it decided.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// Config says what a worker is made of. Name, Data, the six parts and Feed are
// needed; the rest has defaults.
type Config struct {
	Name      string // of the worker, as in its certificate
	Data      string // folder for its identity and the files of attempts
	Address   string // where the scheduler dials it
	Version   string
	Labels    map[string]string
	Slots     int // attempts at once; 0: 16
	Overshoot int // orders that may wait for a slot; 0: slots + 64
	Policy    Policy

	Journal Recorder
	State   *journal.State // what the journal said when it was opened
	Output  Output
	Scripts Scripts
	Groups  Groups
	Runners Runners
	Feed    *Feed // where Runners and Output push their news

	Scheduler Scheduler // nil: the worker registers nowhere

	Log     *slog.Logger   // nil: slog.Default
	Now     func() Instant // nil: the host's clocks
	BootID  string         // "": the host's
	Environ []string       // nil: os.Environ; jobs see an allow-list of it
}

// Worker runs attempts. Its methods may be called from any goroutine, before,
// during and after Run.
type Worker struct {
	cfg      Config
	log      *slog.Logger
	instance string
	identity *identity

	machine   *Machine // owned by the loop
	inbox     *inbox
	board     *board
	tickets   *tickets
	hands     *hands
	tasks     sync.WaitGroup
	ready     chan struct{} // closed once earlier attempts are taken over
	ended     chan struct{} // closed once Run is over
	leaving   chan struct{} // closed when the membership shall end
	left      chan struct{} // closed when it has
	leaveOnce sync.Once
	beat      chan struct{} // capacity 1: send a heartbeat now

	mu        sync.Mutex // guards all below
	counts    Counts
	lapses    uint64         // of the lease
	condition *job.Condition // of the journal
	noUser    *job.Condition // of the policy; does not change
	unkill    time.Time      // since when attempts are unkillable; zero: none is
	session   *session
	indexes   uint64        // grows when scripts or runners change
	indexed   chan struct{} // closed and replaced at the same time
}

// New makes a worker; nothing runs before Run.
func New(c Config) (*Worker, error) {
	const op = "set up worker"
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = hostInstant
	}
	if c.Environ == nil {
		c.Environ = os.Environ()
	}
	if c.State == nil {
		c.State = &journal.State{}
	}
	if c.BootID == "" {
		boot, err := BootID()
		if err != nil {
			return nil, errs.E(op, errs.Internal, "BOOT_ID", err)
		}
		c.BootID = boot
	}
	root := os.Geteuid() == 0
	if err := c.Policy.checkUser(root); err != nil {
		return nil, err
	}
	noUser := userCondition(&c.Policy, root, c.Now().Wall)
	if noUser != nil {
		c.Log.Warn("jobs that name no user are refused: the worker runs as root", "hint", rootHint)
	}
	dirs, err := makeFolders(c.Data, len(c.Policy.Users) > 0 || c.Policy.User != "", c.Log)
	if err != nil {
		return nil, errs.E(op, errs.Internal, "DATA_FOLDER", err)
	}
	id, err := openIdentity(filepath.Join(c.Data, "worker.json"), c.Name, c.Log)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		cfg: c, log: c.Log, instance: newInstanceID(), identity: id, noUser: noUser,
		machine: NewMachine(MachineConfig{BootID: c.BootID, Slots: c.Slots, Overshoot: c.Overshoot}),
		inbox:   c.Feed.in, board: newBoard(), tickets: newTickets(),
		ready: make(chan struct{}), ended: make(chan struct{}), beat: make(chan struct{}, 1),
		leaving: make(chan struct{}), left: make(chan struct{}), indexed: make(chan struct{}),
	}
	w.hands = &hands{
		log: c.Log, output: c.Output, groups: c.Groups, scripts: c.Scripts, runners: c.Runners,
		post: w.inbox.put, tasks: &w.tasks, slots: make(chan struct{}, preparers), held: make(map[job.Key]*holding),
		preparer: &preparer{
			log: c.Log, worker: c.Name, root: root, boot: c.BootID, policy: c.Policy, scratch: dirs.scratch,
			base: baseEnviron(c.Environ), folders: dirs.attempts,
			runners: c.Runners, scripts: c.Scripts, groups: c.Groups, output: c.Output,
			find: (&finder{}).find, account: findAccount,
		},
	}
	return w, nil
}

type folders struct {
	attempts attemptFolders
	scratch  string
}

// makeFolders makes what a worker needs below its data folder.
func makeFolders(data string, users bool, log *slog.Logger) (folders, error) {
	d := folders{scratch: filepath.Join(data, "scratch")}
	mode := os.FileMode(0o700)
	if users {
		// Jobs of other users reach what is theirs through these folders.
		mode = 0o711
	}
	for _, dir := range []string{data, d.scratch} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return d, fmt.Errorf("make data folder: %w", err)
		}
		if !users {
			continue
		}
		if err := os.Chmod(dir, mode); err != nil {
			return d, fmt.Errorf("open data folder to users of jobs: %w", err)
		}
	}
	var err error
	d.attempts, err = makeAttemptFolders(data, mode, log)
	return d, err
}

// hostInstant reads the host's clocks. The boot clock goes on while the host
// sleeps and is the one that the start times of processes are in.
func hostInstant() Instant {
	now := Instant{Wall: time.Now()}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
		now.Boot = time.Duration(ts.Nano())
	}
	return now
}

// Run takes over what earlier lives of the worker left, and works until the
// context ends. Jobs go on after it: use Drain before, to leave for good.
func (w *Worker) Run(ctx context.Context) error {
	defer close(w.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer w.tasks.Wait()
	defer cancel()
	if err := w.resume(ctx); err != nil {
		return err
	}
	close(w.ready)
	w.tasks.Go(func() { w.watchIndexes(ctx) })
	w.tasks.Go(func() { w.hands.preparer.folders.trash.run(ctx) })
	if w.cfg.Scheduler != nil {
		w.tasks.Go(func() {
			defer close(w.left)
			w.membership(ctx)
		})
	}
	w.loop(ctx)
	return nil
}

// InstanceID names this process of the worker.
func (w *Worker) InstanceID() string { return w.instance }

// ID returns the id that the scheduler gave; false before the first registration.
func (w *Worker) ID() (job.WorkerID, bool) { return w.identity.get() }

// Start orders one attempt and answers once its intent is on disk, or it is
// refused. An attempt that is known starts nothing: its report is repeated (P2).
func (w *Worker) Start(ctx context.Context, o job.StartOrder) (job.Report, error) {
	if err := checkKey("start attempt", o.Key); err != nil {
		return job.Report{}, err
	}
	return w.ask(ctx, "start attempt", func(t Ticket) Event { return StartAsked{Order: o, Ticket: t} })
}

// Stop ends an attempt. It answers once the stop is on disk, or, with wait, when
// the attempt is terminal (P9).
func (w *Worker) Stop(ctx context.Context, o job.StopOrder, wait bool) (job.Report, error) {
	if err := checkKey("stop attempt", o.Key); err != nil {
		return job.Report{}, err
	}
	return w.ask(ctx, "stop attempt", func(t Ticket) Event { return StopAsked{Order: o, Wait: wait, Ticket: t} })
}

// checkKey refuses orders that name no attempt.
func checkKey(op string, k job.Key) error {
	if k.Job == (job.ID{}) {
		return errs.Field(op, "job_id", reasonBadRequest, "is not set")
	}
	if k.Attempt == 0 {
		return errs.Field(op, "attempt", reasonBadRequest, "is 0; attempts count from 1")
	}
	return nil
}

// Attempt returns the present report of an attempt; attempt 0 is the newest.
func (w *Worker) Attempt(ctx context.Context, key job.Key) (job.Report, error) {
	const op = "get attempt"
	select {
	case <-w.ready:
	case <-w.ended:
		return job.Report{}, errEnding(op)
	case <-ctx.Done():
		return job.Report{}, errs.E(op, errs.Canceled, "", ctx.Err())
	}
	r, ok := w.board.find(key)
	if !ok {
		return r, errs.E(op, errs.NotFound, "ATTEMPT_UNKNOWN", fmt.Errorf("the worker has no attempt %d of job %s", key.Attempt, key.Job))
	}
	if !r.State.Terminal() {
		r.Stdout.Size, r.Stderr.Size, _ = w.cfg.Output.Sizes(r.Key)
	}
	return r, nil
}

// ask puts an event with a ticket and waits for the answer.
func (w *Worker) ask(ctx context.Context, op string, make func(Ticket) Event) (job.Report, error) {
	t, ch := w.tickets.take()
	defer w.tickets.drop(t)
	w.inbox.put(make(t))
	select {
	case a := <-ch:
		if a.err != nil || a.report == nil {
			return job.Report{}, a.err
		}
		return *a.report, nil
	case <-w.ended:
		return job.Report{}, errEnding(op)
	case <-ctx.Done():
		kind := errs.Canceled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = errs.Timeout
		}
		return job.Report{}, errs.E(op, kind, "", ctx.Err())
	}
}

// Conditions lists what people should know of this worker.
func (w *Worker) Conditions() []job.Condition {
	all := slices.Concat(
		w.cfg.Output.Conditions(), w.cfg.Scripts.Conditions(), w.cfg.Runners.Conditions(), w.cfg.Groups.Conditions(),
		w.hands.preparer.folders.trash.conditions(),
	)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range []*job.Condition{w.noUser, w.condition} {
		if c != nil {
			all = append(all, *c)
		}
	}
	if w.counts.Unkillable > 0 {
		all = append(all, job.Condition{
			Type: reasonUnkillable, Since: w.unkill,
			Message: fmt.Sprintf("%d attempts have processes that withstand SIGKILL; nothing new is taken", w.counts.Unkillable),
		})
	}
	return job.BoundConditions(all)
}

// lapsed tells how often the lease has run out.
func (w *Worker) lapsed() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lapses
}

// Counts says what the worker holds now.
func (w *Worker) Counts() Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}
