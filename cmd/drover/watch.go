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
func watchJobs(ctx context.Context, e *env, c *client.Client, p *render.Printer, q *droverv1.ListJobsRequest, jobs []*droverv1.Job) error {
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
		missed, _, err := listJobs(ctx, c, q, 0)
		for _, j := range slices.Backward(missed) {
			if err := b.show(e.now(), j, render.NewJob(j)); err != nil {
				return err
			}
		}
		return err
	}
	return e.watch(ctx, c, again, func(ev *droverv1.WatchEventsResponse) error {
		j := ev.GetJob()
		if j == nil || b.seen[j.GetJobId()] == nil && !selects(q, j) {
			return nil
		}
		return b.show(e.now(), j, render.NewJob(j))
	})
}

// selects tells whether a query would list a job.
func selects(q *droverv1.ListJobsRequest, j *droverv1.Job) bool {
	if len(q.GetStates()) > 0 && !slices.Contains(q.GetStates(), j.GetState()) {
		return false
	}
	if w := q.GetWorkerId(); w != "" && w != j.GetWorkerId() && w != j.GetWorkerName() {
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
// has dropped events, again lists what there is.
func (e *env) watch(ctx context.Context, c *client.Client, again func() error, f func(*droverv1.WatchEventsResponse) error) error {
	ctx, stop := whileRead(ctx, e.stdout)
	defer stop()
	for lost := time.Now(); ; {
		came, err := watchOnce(ctx, c, again, f)
		if came {
			lost = time.Now()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !follow.Transient(err) && !errors.Is(err, io.EOF) || time.Since(lost) > e.patience {
			return c.Explain("watch", err)
		}
		fmt.Fprintf(e.stderr, "drover: %s; trying again\n", term.Line(strings.TrimSpace(fmt.Sprint(c.Explain("watch", err)))))
		first := 100 * time.Millisecond
		if later, ok := problem.ComeAgain(err); ok {
			first = later/2 + rand.N(later) // not together with the others
		}
		for wait := first; ; wait = min(wait*2, 2*time.Second) {
			if err := pause(ctx, wait); err != nil {
				return err
			}
			if err = again(); err == nil {
				break
			}
			if time.Since(lost) > e.patience {
				return err
			}
		}
	}
}

func watchOnce(ctx context.Context, c *client.Client, again func() error, f func(*droverv1.WatchEventsResponse) error) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The snapshot closes the gap between the list and the first event.
	stream, err := c.WatchEvents(ctx, &droverv1.WatchEventsRequest{Snapshot: true})
	if err != nil {
		return false, err
	}
	for {
		ev, err := stream.Recv()
		if err != nil {
			return came, err
		}
		came = true
		if ev.GetLagged() != nil {
			if err := again(); err != nil {
				return came, err
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
