package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// logsOptions are the flags of logs.
type logsOptions struct {
	follow         bool
	stdout, stderr bool
	from           uint64
	tail           string
	since          moment
	stamps         bool
	raw            bool
	verify         bool
	attempt        uint32
}

func newLogs(e *env) *cobra.Command {
	o := &logsOptions{}
	cmd := &cobra.Command{
		Use: "logs JOB", Aliases: []string{"log"}, Short: "Show the output of a job, live or afterwards",
		Long: "Show the output of a job, live or afterwards: its stdout on stdout, its stderr on stderr,\n" +
			"byte for byte unless they are a terminal; with --stderr alone that one goes to stdout. With -f\n" +
			"it ends when the job ends. Bytes that cannot be had any more are reported on stderr, and the\n" +
			"exit code is 1 then.",
		Example:           "  drover logs -f 1a2b3c4d\n  drover logs --stdout 1a2b3c4d >result.bin\n  drover logs --tail 20 -t 1a2b3c4d",
		Args:              func(cmd *cobra.Command, args []string) error { return o.check(cmd, args) },
		ValidArgsFunction: first(e.completeJobs()),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), e, args[0]) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the job ends")
	f.BoolVar(&o.stdout, "stdout", false, "stdout only")
	f.BoolVar(&o.stderr, "stderr", false, "stderr only")
	f.Uint64Var(&o.from, "from", 0, "begin at this `offset` in bytes")
	f.StringVar(&o.tail, "tail", "", "begin `N` lines before the end")
	f.Var(&o.since, "since", "leave out what is older, such as 10m or 2026-01-31T08:00:00Z")
	f.BoolVarP(&o.stamps, "timestamps", "t", false, "write the time before each line")
	f.BoolVar(&o.raw, "raw", false, "pass control bytes on to the terminal")
	f.BoolVar(&o.verify, "verify", false, "compare with the sha256 that the worker took (exit code 1 when it differs)")
	f.Uint32Var(&o.attempt, "attempt", 0, "output of this attempt (default: the newest)")
	return cmd
}

func (o *logsOptions) check(cmd *cobra.Command, args []string) error {
	begins := 0
	for _, given := range []bool{o.from > 0, o.tail != "", o.since.text != ""} {
		if given {
			begins++
		}
	}
	switch {
	case begins > 1:
		return problem.UsageError(verb(cmd), "--from, --tail and --since exclude one another")
	case o.verify && begins > 0:
		return problem.UsageError(verb(cmd), "--verify needs the whole output: no --from, --tail or --since")
	}
	if _, err := o.lines(); err != nil {
		return problem.UsageError(verb(cmd), "%v", err)
	}
	return exactly("JOB")(cmd, args)
}

// lines is the value of --tail; -1 is all.
func (o *logsOptions) lines() (int, error) {
	if o.tail == "" || o.tail == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(o.tail)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--tail %q is neither a number of lines nor all", o.tail)
	}
	return n, nil
}

// request is the whole read that the flags ask for.
func (o *logsOptions) request(id string, now time.Time) *droverv1.StreamOutputRequest {
	q := &droverv1.StreamOutputRequest{
		JobId: id, Attempt: o.attempt, Follow: o.follow, StdoutOffset: o.from, StderrOffset: o.from, Since: o.since.proto(now),
	}
	switch {
	case o.stdout && !o.stderr:
		q.Stream = droverv1.Stream_STREAM_STDOUT
	case o.stderr && !o.stdout:
		q.Stream = droverv1.Stream_STREAM_STDERR
	}
	return q
}

func (o *logsOptions) run(ctx context.Context, e *env, id string) error {
	return e.withClient(func(c *client.Client) error {
		out := newLanes(e, o.raw, o.stamps)
		if o.stderr && !o.stdout { // the one thing that was asked for is the result
			out.err = newLane(e.stdout, o.raw, o.stamps)
		}
		sink := &checked{to: out}
		if o.verify {
			sink.stdout, sink.stderr = sha256.New(), sha256.New()
		}
		sum, err := o.read(ctx, e, c, id, sink)
		errClose := out.close()
		missing := e.complain(&sum)
		if err := errors.Join(err, errClose); err != nil {
			return c.Explain("read output", err)
		}
		if o.verify {
			return sink.verify(e, o, &sum)
		}
		if missing {
			return problem.Failed
		}
		return nil
	})
}

// read copies what the flags ask for.
func (o *logsOptions) read(ctx context.Context, e *env, c *client.Client, id string, sink follow.Sink) (follow.Summary, error) {
	q := o.request(id, e.now())
	config := follow.Config{
		Opener: c, Request: q, Sink: sink, Patience: e.patience,
		Finished: func(ctx context.Context) (bool, error) {
			j, err := e.getJob(ctx, c, id, false)
			return terminal(j.GetState()), err
		},
		Notice: func(why error) {
			fmt.Fprintf(e.stderr, "drover: %s; trying again\n", term.Line(c.Explain("read output", why).Error()))
		},
	}
	n, err := o.lines()
	if err != nil {
		return follow.Summary{}, err
	}
	if n < 0 {
		return follow.Run(ctx, config)
	}
	sum, err := tail(ctx, config, n)
	if err != nil || !o.follow {
		return sum, err
	}
	q.StdoutOffset, q.StderrOffset = sum.Stdout.Next, sum.Stderr.Next
	rest, err := follow.Run(ctx, config)
	rest.Missing = append(sum.Missing, rest.Missing...)
	return rest, err
}

// checked counts and hashes what passes to the lanes.
type checked struct {
	to             follow.Sink
	stdout, stderr hash.Hash // nil: not wanted
}

// Write implements follow.Sink.
func (s *checked) Write(stream droverv1.Stream, at time.Time, data []byte) error {
	if s.stdout != nil {
		h := s.stdout
		if stream == droverv1.Stream_STREAM_STDERR {
			h = s.stderr
		}
		h.Write(data)
	}
	return s.to.Write(stream, at, data)
}

// verify compares what was read with what the worker says was written (P8).
func (s *checked) verify(e *env, o *logsOptions, sum *follow.Summary) error {
	q := o.request("", e.now())
	ok := true
	for _, one := range []struct {
		stream   droverv1.Stream
		position follow.Position
		hash     hash.Hash
	}{
		{droverv1.Stream_STREAM_STDOUT, sum.Stdout, s.stdout},
		{droverv1.Stream_STREAM_STDERR, sum.Stderr, s.stderr},
	} {
		if q.GetStream() != droverv1.Stream_STREAM_UNSPECIFIED && q.GetStream() != one.stream {
			continue
		}
		name := follow.Name(one.stream)
		if one.position.End == nil {
			return errs.E("verify "+name, errs.Precondition, "OUTPUT_OPEN", errors.New("the job has not ended")).
				WithHint("give -f to wait for its end")
		}
		got, want := hex.EncodeToString(one.hash.Sum(nil)), one.position.End.GetSha256()
		if got != want {
			ok = false
			fmt.Fprintf(e.stderr, "drover: %s differs: sha256 %s was read, %s was written\n", name, got, want)
			continue
		}
		fmt.Fprintf(e.stderr, "drover: %s verified: %d bytes, sha256 %s\n", name, one.position.End.GetSize(), got)
	}
	if !ok {
		return problem.Failed
	}
	return nil
}
