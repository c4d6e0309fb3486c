package e2e_test

import (
	"fmt"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/droverhq/drover/core/job"
)

// What clients see must be explained by one order of their calls, in which each
// takes effect at one moment between its question and its answer: then the
// scheduler, with all its restarts, is one that never was away. porcupine looks
// for such an order; this is the model of one job that it compares with.

// ask is what a client asked of the job that belongs to a request id.
type ask struct {
	op      string // submit, get, stop or list
	request string // the request id
	variant int    // of submit: which of two requests
}

// seen is what it was told.
type seen struct {
	unknown bool   // no answer came: it may have taken effect, or not
	refused bool   // of submit: the request id belongs to another request
	absent  bool   // of get and list: there is no such job
	id      string // of the job
	state   job.State
}

// modelled is the state of the job of one request id.
type modelled struct {
	exists  bool
	id      string // "" while no answer has told
	variant int
	state   job.State
	stopped bool // somebody has asked for its end
}

// jobModel is the specification. Jobs move on by themselves, and only forward.
func jobModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byRequest := map[string][]porcupine.Operation{}
			for _, o := range history {
				r := o.Input.(ask).request
				byRequest[r] = append(byRequest[r], o)
			}
			out := make([][]porcupine.Operation, 0, len(byRequest))
			for _, ops := range byRequest {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return modelled{} },
		Step: func(state, input, output any) (bool, any) {
			m, in, out := state.(modelled), input.(ask), output.(seen)
			switch in.op {
			case "submit":
				return m.submit(in, out)
			case "stop":
				return m.stop(out)
			default:
				return m.look(out)
			}
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
}

// submit: P1.
func (m modelled) submit(in ask, out seen) (bool, any) {
	switch {
	case out.refused:
		return m.exists && m.variant != in.variant, m
	case m.exists && m.variant != in.variant:
		return out.unknown, m // only a refusal is right
	case !m.exists:
		m = modelled{exists: true, variant: in.variant, state: job.Queued}
	}
	if out.unknown {
		return true, m
	}
	return m.known(out.id)
}

// known compares ids: one request is one job.
func (m modelled) known(id string) (bool, any) {
	if m.id == "" {
		m.id = id
	}
	return m.id == id, m
}

// stop: P9. Its answer shows a job that is ending or has ended.
func (m modelled) stop(out seen) (bool, any) {
	m.stopped = true
	if out.unknown {
		return true, m
	}
	if out.state != job.Stopping && !out.state.Terminal() {
		return false, m
	}
	return m.look(out)
}

// look: a job that was accepted is there, and its state moves forward only.
func (m modelled) look(out seen) (bool, any) {
	switch {
	case out.absent:
		return !m.exists, m
	case !m.exists || !m.leads(m.state, out.state):
		return false, m
	}
	m.state = out.state
	return m.known(out.id)
}

// leads tells whether a job can come from one state to another without a retry.
// Kills of the scheduler cost no job (P7): it is never LOST and never REJECTED.
func (m modelled) leads(from, to job.State) bool {
	if from == to {
		return true
	}
	for s := from + 1; s <= job.Stopped; s++ {
		if ending := s == job.Stopping || s == job.Stopped; ending && !m.stopped {
			continue
		}
		if from.CanBecome(s) && m.leads(s, to) {
			return true
		}
	}
	return false
}

// told makes a history in which every call is over before the next begins.
func told(calls ...any) []porcupine.Operation {
	var out []porcupine.Operation
	for i := 0; i < len(calls); i += 2 {
		out = append(out, porcupine.Operation{Input: calls[i], Output: calls[i+1], Call: int64(10 * i), Return: int64(10*i + 5)})
	}
	return out
}

// TestTheHistoryCheckerRejects: a checker that accepts everything would pass, too.
func TestTheHistoryCheckerRejects(t *testing.T) {
	t.Parallel()
	submit, other := ask{op: "submit", request: "r"}, ask{op: "submit", request: "r", variant: 1}
	get, stop, list := ask{op: "get", request: "r"}, ask{op: "stop", request: "r"}, ask{op: "list", request: "r"}
	is := func(s job.State) seen { return seen{id: "a", state: s} }
	lost := seen{unknown: true}
	accepted := seen{id: "a"}
	for name, c := range map[string]struct {
		calls []any
		good  bool
	}{
		"a life":                        {[]any{submit, accepted, get, is(job.Queued), get, is(job.Running), list, is(job.Succeeded), submit, accepted}, true},
		"states that nobody saw":        {[]any{submit, accepted, get, is(job.Failed)}, true},
		"a stop":                        {[]any{submit, accepted, stop, is(job.Stopping), get, is(job.Stopped)}, true},
		"a stop without an answer":      {[]any{submit, accepted, stop, lost, get, is(job.Stopped)}, true},
		"a submit without an answer":    {[]any{submit, lost, list, is(job.Queued), submit, accepted}, true},
		"another request with its id":   {[]any{submit, accepted, other, seen{refused: true}}, true},
		"before it was accepted":        {[]any{list, seen{absent: true}, submit, accepted}, true},
		"accepted and not there":        {[]any{submit, accepted, list, seen{absent: true}}, false},
		"two jobs of one request":       {[]any{submit, accepted, submit, seen{id: "b"}}, false},
		"another job than was told":     {[]any{submit, accepted, get, seen{id: "b", state: job.Queued}}, false},
		"another request is accepted":   {[]any{submit, accepted, other, accepted}, false},
		"the same request is refused":   {[]any{submit, accepted, submit, seen{refused: true}}, false},
		"refused before it was made":    {[]any{submit, seen{refused: true}}, false},
		"a state goes back":             {[]any{submit, accepted, get, is(job.Running), get, is(job.Queued)}, false},
		"an end state changes":          {[]any{submit, accepted, get, is(job.Failed), get, is(job.Succeeded)}, false},
		"it runs on after its stop":     {[]any{submit, accepted, stop, is(job.Stopping), get, is(job.Running)}, false},
		"a stop that stops nothing":     {[]any{submit, accepted, stop, is(job.Running)}, false},
		"stopped, and nobody asked":     {[]any{submit, accepted, get, is(job.Stopped)}, false},
		"lost by a kill of a scheduler": {[]any{submit, accepted, get, is(job.Running), get, is(job.Lost)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := porcupine.CheckOperations(jobModel(), told(c.calls...)); got != c.good {
				t.Errorf("accepted: %v, want %v", got, c.good)
			}
		})
	}
}
