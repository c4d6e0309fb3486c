package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// attendance is how run, exec, rerun and attach stay with a job.
type attendance struct {
	raw   bool
	quiet bool
	fresh bool // only what is printed from now on
}

func (a *attendance) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no messages of drover's own")
	f.BoolVar(&a.raw, "raw", false, "pass control bytes on to the terminal")
}

// attending is one job that is being attended.
type attending struct {
	*attendance
	e       *env
	c       *client.Client
	id      string
	retries bool

	signals   int       // how many came
	first     os.Signal // the first of them
	stopError chan error
}

// outcome is how attending a job ended.
type outcome struct {
	job *droverv1.Job
	err error
	// code replaces the job's own when it is not 0.
	code problem.Code
}

// attend gets the id of a job, streams its output and returns with its exit
// code as an error. Signals stop the job: the first asks, the second kills, the
// third leaves it.
func (a *attendance) attend(ctx context.Context, e *env, c *client.Client, begin func(context.Context) (string, error), retries bool) error {
	// SIGPIPE is relayed so that writing to a closed pipe returns EPIPE, and
	// there is time to stop the job.
	signals, stop := e.notify(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	defer stop()
	at := &attending{attendance: a, e: e, c: c, retries: retries, stopError: make(chan error, 3)}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var err error
	if at.id, err = at.submitted(ctx, signals, begin, &wg); err != nil {
		return err
	}
	if at.signals > 0 {
		at.interrupt(ctx, &wg)
	}
	done := make(chan outcome, 1)
	wg.Go(func() { done <- at.watch(ctx) })
	if term.IsTerminal(e.stderr) && !a.quiet {
		wg.Go(func() { at.tellWaiting(ctx) })
	}
	for {
		select {
		case o := <-done:
			return at.result(o)
		case err := <-at.stopError:
			problem.Print(e.stderr, err)
		case s := <-signals:
			if s == unix.SIGPIPE {
				continue // the write that caused it tells
			}
			if err := at.signalled(s); err != nil {
				return err
			}
			at.interrupt(ctx, &wg)
		}
	}
}

// submitted runs begin and remembers signals that come meanwhile. The request
// may be accepted already, so a first signal waits for the answer.
func (a *attending) submitted(ctx context.Context, signals <-chan os.Signal, begin func(context.Context) (string, error), wg *sync.WaitGroup) (string, error) {
	type answer struct {
		id  string
		err error
	}
	done := make(chan answer, 1)
	wg.Go(func() {
		id, err := begin(ctx)
		done <- answer{id, err}
	})
	for {
		select {
		case got := <-done:
			return got.id, got.err
		case s := <-signals:
			if s == unix.SIGPIPE {
				continue
			}
			a.signals++
			if a.first == nil {
				a.first = s
			}
			if a.signals > 1 {
				a.say("leaving; the job may have been accepted, see \"drover jobs\"")
				return "", a.left()
			}
			a.say("stopping once the scheduler has answered (again to leave at once)")
		}
	}
}

func (a *attending) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.e.stderr, "drover: %s\n", term.Line(fmt.Sprintf(format, args...)))
	}
}

// left is the exit code of a drover that was told to go.
func (a *attending) left() problem.Code {
	if s, ok := a.first.(syscall.Signal); ok {
		return problem.Signalled + problem.Code(s)
	}
	return problem.DroverFailed
}

// signalled counts a signal; the third ends the attendance.
func (a *attending) signalled(s os.Signal) error {
	a.signals++
	if a.first == nil {
		a.first = s
	}
	if a.signals <= 2 {
		return nil
	}
	a.say("leaving %s; it is being stopped, see \"drover status %s\"", render.ShortID(a.id), render.ShortID(a.id))
	return a.left()
}

// interrupt asks for a stop, the second time at once with SIGKILL.
func (a *attending) interrupt(ctx context.Context, wg *sync.WaitGroup) {
	var grace *durationpb.Duration
	if a.signals > 1 {
		grace = durationpb.New(0)
		a.say("killing %s (again to leave it)", render.ShortID(a.id))
	} else {
		a.say("stopping %s (again to kill it)", render.ShortID(a.id))
	}
	wg.Go(func() {
		if err := a.stop(ctx, grace); err != nil && ctx.Err() == nil {
			a.stopError <- err
		}
	})
}

func (a *attending) stop(ctx context.Context, grace *durationpb.Duration) error {
	err := a.e.persist(ctx, a.c, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, submitTimeout)
		defer cancel()
		_, err := a.c.StopJob(ctx, &droverv1.StopJobRequest{JobId: a.id, Grace: grace})
		return err
	})
	return a.c.Explain("stop the job", err)
}

// watch streams every attempt and waits for the end of the job.
func (a *attending) watch(ctx context.Context) outcome {
	ended, leave := ahead(ctx, func(ctx context.Context) (*droverv1.Job, error) { return a.e.awaitJob(ctx, a.c, a.id) })
	defer leave()
	s := newLanes(a.e, a.raw, false)
	sum, err := a.stream(ctx, s)
	if errClose := s.close(); err == nil && errClose != nil {
		err = &follow.SinkError{Err: errClose}
	}
	o := outcome{err: err}
	var sink *follow.SinkError
	if errors.As(err, &sink) {
		o = a.unwritable(ctx, sink)
	}
	if o.err != nil {
		return o
	}
	if a.e.complain(&sum) && o.code == problem.Done {
		o.code = problem.DroverFailed // the job's own code would say that all is well
	}
	o.job, o.err = ended()
	return o
}

// ahead asks how a job ends while its output still comes: a short one would wait for
// the question otherwise. ended returns the answer; an error that came before it is
// called is of another time, and ask is called again. leave is to be called when nobody
// wants the answer any more.
func ahead(ctx context.Context, ask func(context.Context) (*droverv1.Job, error)) (ended func() (*droverv1.Job, error), leave func()) {
	type answer struct {
		job *droverv1.Job
		err error
	}
	early, cancel := context.WithCancel(ctx)
	answers := make(chan answer, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		j, err := ask(early)
		answers <- answer{j, err}
	})
	ended = func() (*droverv1.Job, error) {
		select {
		case got := <-answers:
			if got.err != nil {
				return ask(ctx)
			}
			return got.job, nil
		default:
			got := <-answers
			return got.job, got.err
		}
	}
	return ended, func() { cancel(); wg.Wait() }
}

// unwritable stops a job whose output nobody takes any more, as SIGPIPE would
// have stopped a local command.
func (a *attending) unwritable(ctx context.Context, sink *follow.SinkError) outcome {
	o := outcome{code: problem.DroverFailed}
	if errors.Is(sink, unix.EPIPE) {
		o.code = problem.Signalled + problem.Code(unix.SIGPIPE)
	} else {
		a.say("%v; stopping %s", sink, render.ShortID(a.id))
	}
	o.err = a.stop(ctx, nil)
	return o
}

// stream copies the output of the job, attempt after attempt when there can be
// several.
func (a *attending) stream(ctx context.Context, s *lanes) (follow.Summary, error) {
	if !a.retries {
		return a.attempt(ctx, s, 0)
	}
	var all follow.Summary
	for n := uint32(1); ; n++ {
		j, err := a.reachedAttempt(ctx, n)
		if err != nil || j.GetAttempt() < n {
			return all, err
		}
		sum, err := a.attempt(ctx, s, n)
		all.Missing = append(all.Missing, sum.Missing...)
		if err != nil {
			return all, err
		}
	}
}

// reachedAttempt waits until a job has begun its nth attempt, or has ended.
func (a *attending) reachedAttempt(ctx context.Context, n uint32) (*droverv1.Job, error) {
	for wait := 20 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		j, err := a.e.getJob(ctx, a.c, a.id, false)
		if err != nil || terminal(j.GetState()) || j.GetAttempt() >= n && j.GetWorkerId() != "" {
			return j, err
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (a *attending) attempt(ctx context.Context, s *lanes, attempt uint32) (follow.Summary, error) {
	q := &droverv1.StreamOutputRequest{JobId: a.id, Attempt: attempt, Follow: true}
	if a.fresh {
		from, err := endOf(ctx, a.c, a.id)
		if err != nil {
			return from, a.c.Explain("read output", err)
		}
		q.StdoutOffset, q.StderrOffset = from.Stdout.Next, from.Stderr.Next
	}
	sum, err := follow.Run(ctx, follow.Config{
		Opener: a.c, Request: q, Sink: s, Patience: a.e.patience, Eager: true,
		Finished: func(ctx context.Context) (bool, error) {
			j, err := a.e.getJob(ctx, a.c, a.id, false)
			return terminal(j.GetState()) || attempt > 0 && j.GetAttempt() > attempt, err
		},
		Notice: func(why error) { a.say("%v; trying again", a.c.Explain("read output", why)) },
	})
	return sum, a.c.Explain("read output", err)
}

// tellWaiting says on a terminal why nothing happens yet.
func (a *attending) tellWaiting(ctx context.Context) {
	last := ""
	for wait := 2 * time.Second; pause(ctx, wait) == nil; wait = 5 * time.Second {
		j, err := a.e.getJob(ctx, a.c, a.id, false)
		if err != nil || j.GetState() != droverv1.JobState_JOB_STATE_QUEUED {
			return
		}
		if why := term.Line(j.GetMessage()); why != last {
			last = why
			a.say("%s waits: %s", render.ShortID(a.id), why)
		}
	}
}

// result says how it ended and picks the exit code.
func (a *attending) result(o outcome) error {
	if o.err != nil {
		if e := (*errs.Error)(nil); errors.As(o.err, &e) && e.Hint == "" {
			o.err = e.WithHint("the job may go on; see \"drover attach %s\"", render.ShortID(a.id))
		}
		return problem.WithCode(o.err, problem.DroverFailed)
	}
	if a.signals > 0 && o.job.GetStopProof() != nil {
		a.say("%s", stopped(o.job))
	}
	if o.code != problem.Done {
		return o.code
	}
	if a.signals > 0 && o.job.GetState() == droverv1.JobState_JOB_STATE_STOPPED && o.job.ExitCode == nil && o.job.GetSignal() == "" {
		return a.left() // it never ran: the signal was for drover alone
	}
	return verdict(o.job)
}

// getJob asks for a job, patiently; with wait once it is terminal.
func (e *env) getJob(ctx context.Context, c *client.Client, id string, wait bool) (*droverv1.Job, error) {
	var j *droverv1.Job
	err := e.persist(ctx, c, func(ctx context.Context) error {
		if !wait {
			var cancel context.CancelFunc
			ctx, cancel = call(ctx)
			defer cancel()
		}
		answer, err := c.GetJob(ctx, &droverv1.GetJobRequest{JobId: id, Wait: wait})
		j = answer.GetJob()
		return err
	})
	return j, c.Explain("show the job", err)
}

func (e *env) awaitJob(ctx context.Context, c *client.Client, id string) (*droverv1.Job, error) {
	return e.getJob(ctx, c, id, true)
}

// persist makes a call until it is answered, for as long as a verb that waits
// for a job is patient. The call must be idempotent. A scheduler that was never
// reached is given up at once.
func (e *env) persist(ctx context.Context, c *client.Client, f func(context.Context) error) error {
	lost := time.Time{}
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, 2*time.Second) {
		err := f(ctx)
		late := status.Code(err) == codes.DeadlineExceeded // f's own bound, as ctx is checked first
		if err == nil || ctx.Err() != nil || !c.Reached() || !late && !follow.Transient(err) {
			return err
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		if time.Since(lost) > e.patience {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}
