package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// explanation is why a job is in its state, as JSON shows it.
type explanation struct {
	JobID    string   `json:"job_id"`
	State    string   `json:"state"`
	Reason   string   `json:"reason"`
	Message  string   `json:"message"`
	Evidence string   `json:"evidence"`
	Where    string   `json:"where"`
	Chain    []step   `json:"chain"`
	Stderr   []string `json:"stderr"` // its last lines, when the job failed
	Hint     string   `json:"hint"`
}

// step is one link of the causal chain.
type step struct {
	Time *time.Time `json:"time"`
	What string     `json:"what"`
}

func newWhy(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "why JOB", Short: "Tell why a job is in its state", Args: exactly("JOB"), ValidArgsFunction: first(e.completeJobs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			return e.withClient(func(c *client.Client) error {
				j, err := getOnce(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				x := explain(j)
				if j.GetState() == droverv1.JobState_JOB_STATE_FAILED && j.GetReachable() {
					x.Stderr = lastWords(cmd.Context(), c, j.GetJobId())
				}
				return render.One(p, x, func() []render.Field { return x.fields() })
			})
		},
	}
	o.register(cmd)
	return cmd
}

// explain tells the story of a job from its record.
func explain(j *droverv1.Job) explanation {
	v := render.NewJob(j)
	x := explanation{
		JobID: v.JobID, State: v.Shown(), Reason: v.Reason, Message: v.Message, Evidence: evidence(j.GetEvidence()), Where: v.WorkerName,
		Stderr: []string{}, Hint: hintFor(j),
	}
	x.add(v.SubmitTime, "asked for by %s: %s", orNobody(v.RequestedBy), v.What())
	for _, a := range v.Attempts {
		if a.Attempt == v.Attempt && v.WorkerName != "" {
			continue // told below
		}
		end := strings.ToLower(a.State)
		if r := a.Result(); r != "" {
			end += " " + r
		}
		if a.Reason != "" {
			end += " because of " + a.Reason
		}
		x.add(a.EndTime, "attempt %d on the worker %s: %s%s", a.Attempt, a.WorkerName, end, retriesLeft(v))
	}
	if v.WorkerName != "" {
		x.add(nil, "attempt %d went to the worker %s%s", v.Attempt, v.WorkerName, retriesLeft(v))
	}
	if v.StartTime != nil && v.WorkerName != "" {
		ran := fmt.Sprintf("started by the runner %s %s", v.Runner, v.RunnerVersion)
		if v.PID > 0 {
			ran += fmt.Sprintf(" as process %d", v.PID)
		}
		x.add(v.StartTime, "%s", ran)
	}
	if !v.Reachable && !v.Terminal() && v.WorkerName != "" {
		x.add(v.UnreachableSince, "the worker %s cannot be reached since then; the job may go on there", v.WorkerName)
	}
	if v.StopProof != nil {
		x.add(nil, "stopped: %s", v.StopProof)
	}
	end := strings.ToLower(v.State)
	if v.Reason != "" {
		end += " because of " + v.Reason
	}
	if v.Message != "" {
		end += ": " + v.Message
	}
	x.add(v.EndTime, "%s", end)
	return x
}

// retriesLeft tells an attempt of a job that may have several.
func retriesLeft(v render.Job) string {
	if v.Spec == nil || v.Spec.Retry == nil || v.Spec.Retry.MaxRetries == 0 {
		return ""
	}
	return fmt.Sprintf(" (of at most %d)", v.Spec.Retry.MaxRetries+1)
}

func orNobody(name string) string {
	if name == "" {
		return "nobody known"
	}
	return name
}

func (x *explanation) add(at *time.Time, format string, args ...any) {
	x.Chain = append(x.Chain, step{at, fmt.Sprintf(format, args...)})
}

// evidence says in words how a result is known (P6).
func evidence(e droverv1.Evidence) string {
	switch e {
	case droverv1.Evidence_EVIDENCE_WAIT:
		return "WAIT: the runner waited for its own process"
	case droverv1.Evidence_EVIDENCE_ADOPTED_WAIT:
		return "ADOPTED_WAIT: the worker waited for the process of a dead plugin"
	case droverv1.Evidence_EVIDENCE_PIDFD:
		return "PIDFD: read from a handle that was opened while the process lived"
	case droverv1.Evidence_EVIDENCE_EXIT_JOURNAL:
		return "EXIT_JOURNAL: read from what the plugin wrote down"
	default:
		return ""
	}
}

// lastWords are the last lines that a job wrote to stderr. They only help:
// without them the rest is told.
func lastWords(ctx context.Context, c *client.Client, id string) []string {
	ctx, cancel := call(ctx)
	defer cancel()
	words := &words{}
	_, err := tail(ctx, follow.Config{
		Opener: c, Sink: words,
		Request: &droverv1.StreamOutputRequest{JobId: id, Stream: droverv1.Stream_STREAM_STDERR},
	}, 5)
	lines := []string{}
	if err != nil {
		return lines
	}
	for line := range strings.Lines(words.String()) {
		lines = append(lines, render.Cut(strings.TrimRight(strings.ToValidUTF8(line, "\ufffd"), "\r\n"), 200))
	}
	return lines
}

// words collects text. It implements follow.Sink.
type words struct{ bytes.Buffer }

// Write implements follow.Sink.
func (w *words) Write(_ droverv1.Stream, _ time.Time, data []byte) error {
	_, err := w.Buffer.Write(data)
	return err
}

// fields is the explanation for people.
func (x explanation) fields() []render.Field {
	fields := []render.Field{{Name: render.ShortID(x.JobID), Value: x.State}}
	for _, s := range x.Chain {
		when := "then"
		if s.Time != nil {
			when = s.Time.UTC().Format(time.RFC3339)
		}
		fields = append(fields, render.Field{Name: when, Value: term.Line(s.What)})
	}
	fields = append(fields, render.Field{Name: "evidence", Value: x.Evidence}, render.Field{Name: "where", Value: term.Line(x.Where)})
	for _, line := range x.Stderr {
		fields = append(fields, render.Field{Name: "stderr", Value: term.Line(line)})
	}
	return append(fields, render.Field{Name: "hint", Value: term.Line(x.Hint)})
}

// Cells implements render.Row.
func (x explanation) Cells(*render.Printer) []string {
	return []string{render.ShortID(x.JobID), x.State, x.Reason, term.Line(x.Message)}
}

// Key implements render.Row.
func (x explanation) Key() string { return x.JobID }

// Label implements render.Row.
func (x explanation) Label() string { return x.JobID }
