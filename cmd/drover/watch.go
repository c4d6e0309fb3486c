package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// board shows rows as they change: what there is first, then a line for every
// change, under one header.
type board[R render.Row] struct {
	p      *render.Printer
	widths []int
	seen   map[string]proto.Message
}

func newBoard[R render.Row](p *render.Printer, header []string, rows []R) (*board[R], error) {
	b := &board[R]{p: p, seen: map[string]proto.Message{}}
	if p.Quiet || p.Format == render.Lines || p.Format == render.Name {
		return b, nil
	}
	cells := make([][]string, len(rows))
	for i, r := range rows {
		cells[i] = r.Cells(p)
	}
	b.widths = render.Widths(header, cells)
	for i, h := range header {
		// Room for what comes: states and short numbers that are not there yet.
		if h == "STATE" {
			b.widths[i] = max(b.widths[i], len("UNREACHABLE"))
		} else {
			b.widths[i] = max(b.widths[i], len(h)+2)
		}
	}
	_, err := io.WriteString(p.Out, render.AlignRow(header, b.widths))
	return b, err
}

// show prints a row unless it is what was printed last.
func (b *board[R]) show(now time.Time, m proto.Message, row R) error {
	if last, ok := b.seen[row.Key()]; ok && proto.Equal(last, m) {
		return nil
	}
	b.seen[row.Key()] = m
	b.p.Now = now
	if b.widths == nil {
		return render.List(b.p, nil, []R{row})
	}
	if _, err := io.WriteString(b.p.Out, render.AlignRow(row.Cells(b.p), b.widths)); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// watchJobs shows the jobs that a query selects, and those that leave it.
func watchJobs(
	ctx context.Context, e *env, c *client.Client, p *render.Printer, q *droverv1.ListJobsRequest, limit int, jobs []*droverv1.Job,
) error {
	if err := watchUsage("jobs", p.Format); err != nil {
		return err
	}
	b, err := newBoard(p, render.JobHeader(p.Format), render.Jobs(jobs))
	if err != nil {
		return err
	}
	for _, j := range slices.Backward(jobs) { // oldest first: new ones follow below
		if err := b.show(e.now(), j, render.NewJob(j)); err != nil {
			return err
		}
	}
	again := func() error {
		q.PageToken = ""
		missed, _, err := listJobs(ctx, c, q, limit)
		if err != nil {
			return err
		}
		// What was shown as live and is not selected any more has changed, too.
		if missed, err = e.withLeft(ctx, c, b.seen, missed); err != nil {
			return err
		}
		for _, j := range slices.Backward(missed) {
			if err := b.show(e.now(), j, render.NewJob(j)); err != nil {
				return err
			}
		}
		return nil
	}
	return e.watch(ctx, c, again, func(ev *droverv1.WatchEventsResponse) error {
		j := ev.GetJob()
		if j == nil || b.seen[j.GetJobId()] == nil && !selects(q, j) {
			return nil
		}
		return b.show(e.now(), j, render.NewJob(j))
	})
}

// withLeft adds to a new list the jobs that were shown as live and are not in it, as
// they are now.
func (e *env) withLeft(ctx context.Context, c *client.Client, seen map[string]proto.Message, list []*droverv1.Job) ([]*droverv1.Job, error) {
	listed := map[string]bool{}
	for _, j := range list {
		listed[j.GetJobId()] = true
	}
	for id, m := range seen {
		if j, ok := m.(*droverv1.Job); !ok || terminal(j.GetState()) || listed[id] {
			continue
		}
		j, err := e.getJob(ctx, c, id, false)
		switch {
		case errs.KindOf(err) == errs.NotFound:
			continue // its record was removed
		case err != nil:
			return nil, err
		}
		list = append(list, j)
	}
	return list, nil
}

// selects tells whether a query would list a job.
func selects(q *droverv1.ListJobsRequest, j *droverv1.Job) bool {
	if len(q.GetStates()) > 0 && !slices.Contains(q.GetStates(), j.GetState()) {
		return false
	}
	if w, id := q.GetWorkerId(), j.GetWorkerId(); w != j.GetWorkerName() && !strings.HasPrefix(id, w) && !strings.HasSuffix(id, w) {
		return false
	}
	if q.GetSince() != nil && j.GetSubmitTime().AsTime().Before(q.GetSince().AsTime()) {
		return false
	}
	return hasLabels(j.GetLabels(), q.GetLabels())
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// watch hands events to f until ctx ends. After a break, or when the scheduler
// has dropped events, list tells what there is.
func (e *env) watch(ctx context.Context, c *client.Client, list func() error, f func(*droverv1.WatchEventsResponse) error) error {
	ctx, stop := whileRead(ctx, e.stdout)
	defer stop()
	for lost := time.Now(); ; {
		came, err := watchOnce(ctx, c, list, f)
		if came {
			lost = time.Now()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var failed *listError
		again := follow.Transient(err) || errors.Is(err, io.EOF) || errors.As(err, &failed)
		if !again || time.Since(lost) > e.patience {
			return c.Explain("watch", err)
		}
		fmt.Fprintf(e.stderr, "drover: %s; trying again\n", term.Line(strings.TrimSpace(fmt.Sprint(c.Explain("watch", err)))))
		wait := 100 * time.Millisecond
		if later, ok := problem.ComeAgain(err); ok {
			wait = later/2 + rand.N(later) // not together with the others
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// listError is that of a list that was to tell what was missed.
type listError struct{ error }

// Unwrap returns it.
func (e *listError) Unwrap() error { return e.error }

func watchOnce(ctx context.Context, c *client.Client, again func() error, f func(*droverv1.WatchEventsResponse) error) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The snapshot closes the gap between the list and the first event.
	stream, err := c.WatchEvents(ctx, &droverv1.WatchEventsRequest{Snapshot: true})
	if err != nil {
		return false, err
	}
	// What changes from here on is told. What changed before, and is no part of the
	// snapshot because it has ended, is in a list that is made now.
	if _, err := stream.Header(); err != nil {
		return false, err
	}
	if err := again(); err != nil {
		return false, &listError{err}
	}
	came = true
	for {
		ev, err := stream.Recv()
		if err != nil {
			return came, err
		}
		came = true
		if ev.GetLagged() != nil {
			if err := again(); err != nil {
				return came, &listError{err}
			}
			continue
		}
		if err := f(ev); err != nil {
			return came, err
		}
	}
}

// readLook is how often whileRead looks.
const readLook = 500 * time.Millisecond

// whileRead ends the context when the output is a pipe that nobody reads any more.
// A write would tell, but a watch may have nothing to write for hours.
func whileRead(ctx context.Context, out io.Writer) (context.Context, func()) {
	file, ok := out.(*os.File)
	if !ok {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(readLook)
		defer tick.Stop()
		for ctx.Err() == nil && !unread(file) {
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
		// As any command that writes on: on standard output this is SIGPIPE.
		if _, err := file.WriteString("\n"); err != nil {
			cancel(fmt.Errorf("print: %w", err))
		}
	})
	return ctx, func() {
		cancel(nil)
		wait.Wait()
	}
}

// unread tells whether a pipe has lost its last reader: POLLERR, see poll(2).
func unread(file *os.File) bool {
	p := []unix.PollFd{{Fd: int32(file.Fd())}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}
