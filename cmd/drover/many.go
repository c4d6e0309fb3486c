package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// manyHelp is part of the help of run and exec.
const manyHelp = "--array and --each make many jobs of one command. Their output is kept and not shown (see\n" +
	"\"drover logs\"); drover shows how far they have come, says which failed, and exits with 0\n" +
	"when all succeeded and 1 when not. Ctrl-C stops those that have not ended."

// many are the flags of run and exec that make many jobs of one command.
type many struct {
	array    string
	each     string
	parallel int
	maxFail  string
}

func (m *many) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.array, "array", "", "one job for each `index`, such as 1-100, 0-99:5 or 1,3,7-9; it takes the place\n"+
		"of {} in the arguments and is $DROVER_ARRAY_INDEX")
	f.StringVar(&m.each, "each", "", "one job for each line of `file` (- is standard input), which takes the place of {}")
	f.IntVar(&m.parallel, "parallel", 0, "with --array and --each: at most so many jobs under way at once (default 4096)")
	f.StringVar(&m.maxFail, "max-fail", "", "with --array and --each: stop the rest when more than `N or P%` jobs fail")
	completeFlag(cmd, "array", cobra.NoFileCompletions)
}

// wanted tells whether there is more than one job to make.
func (m *many) wanted() bool { return m.array != "" || m.each != "" }

// maxParallel is how many jobs the scheduler lets one client wait for.
const maxParallel = 100_000

// requestIDRoom is what the index adds to a request id.
const requestIDRoom = 20

// check refuses flags that do not go together, before anything is read.
func (m *many) check(verb string, o *runOptions, args []string) error {
	switch {
	case !m.wanted() && (m.parallel != 0 || m.maxFail != ""):
		return problem.UsageError(verb, "--parallel and --max-fail need --array or --each")
	case !m.wanted():
		return nil
	case m.array != "" && m.each != "":
		return problem.UsageError(verb, "--array and --each exclude one another")
	case m.each != "" && !bulk.Marked(args):
		return problem.UsageError(verb, "--each needs {} among the arguments: it is where the line goes")
	case m.each == "-" && o.stdin == "-":
		return problem.UsageError(verb, "standard input is taken twice: by --each and by --stdin")
	case m.parallel < 0 || m.parallel > maxParallel:
		return problem.UsageError(verb, "--parallel %d is not between 1 and %d", m.parallel, maxParallel)
	case o.detach && (m.parallel != 0 || m.maxFail != ""):
		return problem.UsageError(verb, "--detach leaves nobody to keep --parallel and --max-fail")
	case len(o.requestID) > 128-requestIDRoom:
		return problem.UsageError(verb, "--request-id has %d bytes, at most %d with --array and --each", len(o.requestID), 128-requestIDRoom)
	default:
		return nil
	}
}

// items reads what the jobs differ by. Every line is looked at before the first
// job is made.
func (m *many) items(e *env, verb string) (bulk.Items, error) {
	if m.array != "" {
		a, err := bulk.ParseArray(m.array)
		if err != nil {
			return nil, problem.UsageError(verb, "--array: %w", err)
		}
		return a, nil
	}
	f, err := e.file(m.each)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := bulk.ReadLines(f)
	switch {
	case err != nil:
		return nil, problem.UsageError(verb, "--each %s: %w", m.each, err)
	case len(lines) == 0:
		return nil, problem.UsageError(verb, "--each %s: there is no line", m.each)
	}
	return lines, nil
}

// limit is how many of total jobs may fail; -1 is any number.
func (m *many) limit(verb string, total int) (int, error) {
	if m.maxFail == "" {
		return -1, nil
	}
	percent, ok := strings.CutSuffix(m.maxFail, "%")
	if ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err == nil && p >= 0 && p <= 100 {
			return int(math.Floor(float64(total) * p / 100)), nil
		}
	} else if n, err := strconv.Atoi(m.maxFail); err == nil && n >= 0 {
		return n, nil
	}
	return 0, problem.UsageError(verb, "--max-fail %q is neither a number such as 10 nor a share such as 5%%", m.maxFail)
}

// index is what $DROVER_ARRAY_INDEX says: the index of an array, the number of
// a line.
func (m *many) index(items bulk.Items, i int) string {
	if m.array != "" {
		return items.Item(i)
	}
	return strconv.Itoa(i + 1)
}

// label names a job of the run for people.
func (m *many) label(items bulk.Items, i int) string {
	if m.array != "" {
		return items.Item(i)
	}
	return "line " + strconv.Itoa(i+1)
}

// runMany makes a job for each item of a template.
func (o *runOptions) runMany(ctx context.Context, e *env, t *droverv1.StartJobRequest) error {
	items, err := o.items(e, o.verb)
	if err != nil {
		return err
	}
	limit, err := o.limit(o.verb, items.Len())
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		config := bulk.Config{
			API: c, Total: items.Len(), Parallel: o.parallel, MaxFail: limit, Detach: o.detach,
			Request:   func(i int) *droverv1.StartJobRequest { return bulk.Fill(t, items.Item(i), o.index(items, i)) },
			Transient: func(err error) bool { return c.Reached() && transient(err) }, Patience: e.patience,
		}
		if o.detach {
			return o.submitMany(ctx, e, c, config)
		}
		return o.attendMany(ctx, e, c, config, items)
	})
}

// submitMany prints the ids of jobs that nobody waits for, as they are accepted.
func (o *runOptions) submitMany(ctx context.Context, e *env, c *client.Client, config bulk.Config) error {
	var failure error
	config.Started = func(_ int, id string) {
		if _, err := fmt.Fprintln(e.stdout, id); err != nil && failure == nil {
			failure = fmt.Errorf("print a job's id: %w", err)
		}
	}
	config.Failed = func(_ int, _ string, _ *droverv1.JobEnd, refused *droverv1.StartJobsError) {
		problem.Print(e.stderr, problem.FromRefusal(refused))
		if failure == nil {
			failure = problem.Failed
		}
	}
	_, err := bulk.Run(ctx, config)
	return errors.Join(explainMany(c, err), failure)
}

// attendMany stays with the jobs until the last has ended. Signals stop them:
// the first asks, the second kills, the third leaves them.
func (o *runOptions) attendMany(ctx context.Context, e *env, c *client.Client, config bulk.Config, items bulk.Items) error {
	signals, stop := e.notify(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	orders := make(chan bulk.Order)
	board := &scoreboard{many: &o.many, items: items, e: e, quiet: o.quiet, begin: time.Now()}
	board.tty, _ = e.stderr.(*term.Terminal)
	config.Orders, config.Failed, config.Tick, config.Every = orders, board.failed, board.tick, board.every()
	type outcome struct {
		counts bulk.Counts
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		counts, err := bulk.Run(ctx, config)
		done <- outcome{counts, err}
	}()
	var first os.Signal
	for n := 0; ; {
		select {
		case out := <-done:
			cancel(nil)
			return o.verdictOfMany(board, out.counts, explainMany(c, out.err), first)
		case s := <-signals:
			if n++; first == nil {
				first = s
			}
			order := bulk.Order{Stop: true}
			switch n {
			case 1:
				board.say("stopping the jobs (again to kill them)")
			case 2:
				board.say("killing the jobs (again to leave them)")
				order.Grace = durationpb.New(0)
			default:
				board.say("leaving the jobs; they are being stopped, see \"drover jobs\"")
				cancel(signalCode(first))
				continue
			}
			select {
			case orders <- order:
			case out := <-done:
				done <- out
			}
		}
	}
}

func signalCode(s os.Signal) problem.Code {
	n, _ := s.(syscall.Signal)
	return problem.Signalled + problem.Code(n)
}

// verdictOfMany prints the sum and picks the exit code.
func (o *runOptions) verdictOfMany(b *scoreboard, counts bulk.Counts, err error, first os.Signal) error {
	b.clear()
	if code := problem.Code(0); errors.As(err, &code) {
		return code
	}
	if err != nil {
		if e := (*errs.Error)(nil); errors.As(err, &e) && e.Hint == "" && counts.Running > 0 {
			err = e.WithHint("%d jobs may go on; see \"drover jobs\"", counts.Running)
		}
		return err
	}
	if !o.quiet {
		if _, err := fmt.Fprintln(b.e.stdout, summary(counts, time.Since(b.begin))); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	switch {
	case first != nil:
		return signalCode(first)
	case counts.Succeeded < counts.Total:
		return problem.Failed
	default:
		return nil
	}
}

// transient tells whether another try may mend what a call or a stream ended
// with.
func transient(err error) bool {
	return follow.Transient(err) || errors.Is(err, io.EOF) || status.Code(err) == codes.DeadlineExceeded
}

// explainMany puts the error of a run into words.
func explainMany(c *client.Client, err error) error {
	if refused := (*bulk.RefusedError)(nil); errors.As(err, &refused) {
		return hinted(problem.FromRefusal(refused.Refusal))
	}
	return c.Explain("run the jobs", err)
}
