package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// notOfJobs are reasons that no job can have.
var notOfJobs = map[string]bool{
	"ReasonPolicyFile": true, // of a worker that does not start
}

// reasonsOfTheCode reads the constants that are reasons of jobs: a new one without
// advice fails the test below.
func reasonsOfTheCode(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"job", "worker", "scheduler", "registry"} {
		files, err := filepath.Glob(filepath.Join("..", "..", "core", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no code in core/%s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			p, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(p, func(n ast.Node) bool {
				v, ok := n.(*ast.ValueSpec)
				if !ok {
					return true
				}
				for i, name := range v.Names {
					if !strings.HasPrefix(strings.ToLower(name.Name), "reason") || i >= len(v.Values) || notOfJobs[name.Name] {
						continue
					}
					if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
						text, err := strconv.Unquote(lit.Value)
						if err != nil {
							t.Fatal(err)
						}
						out = append(out, text)
					}
				}
				return true
			})
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestWhyHasAdviceForEveryReason: every reason of the code, for a job that waits
// with it, runs with it, or has ended with it.
func TestWhyHasAdviceForEveryReason(t *testing.T) {
	t.Parallel()
	reasons := reasonsOfTheCode(t)
	if len(reasons) < 30 || !slices.Contains(reasons, "EXIT_CODE") || !slices.Contains(reasons, "RETRY") || !slices.Contains(reasons, "WORKDIR") {
		t.Fatalf("the reasons of the code were not found: %q", reasons)
	}
	for _, reason := range reasons {
		if advice(reason, "1a2b3c4d", "w1") == "" {
			t.Errorf("why tells nobody what to do about %s: add it to advice.go", reason)
		}
	}
	if advice("NO_SUCH_REASON", "1a2b3c4d", "w1") != "" {
		t.Error("a reason that is not known has advice of its own: the test above proves nothing")
	}
}

// TestWhyTellsTheChain walks every state with every reason: the chain begins with
// the request, ends with the state, its reason and its message, and says what to do.
func TestWhyTellsTheChain(t *testing.T) {
	t.Parallel()
	now := timestamppb.New(time.Unix(1_800_000_000, 0))
	for number, state := range droverv1.JobState_name {
		s := droverv1.JobState(number)
		if s == droverv1.JobState_JOB_STATE_UNSPECIFIED {
			continue
		}
		for _, reason := range append(reasonsOfTheCode(t), "", "OF_A_NEWER_WORKER") {
			for _, reachable := range []bool{true, false} {
				j := &droverv1.Job{
					JobId: "0190c0de-0000-7000-8000-000000000001", State: s, Reason: reason, Message: "what happened",
					RequestedBy: "alice", SubmitTime: now, Reachable: reachable, Path: "count.sh", Attempt: 1,
				}
				queued := s == droverv1.JobState_JOB_STATE_QUEUED
				if !queued {
					j.WorkerId, j.WorkerName, j.StartTime = "w", "build-1", now
				}
				if queued && !reachable {
					continue // nobody has it
				}
				x := explain(j)
				last := x.Chain[len(x.Chain)-1].What
				word := strings.ToLower(strings.TrimPrefix(state, "JOB_STATE_"))
				if !strings.Contains(x.Chain[0].What, "alice") || !strings.HasPrefix(last, word) ||
					!strings.Contains(last, "what happened") || !strings.Contains(last, reason) {
					t.Errorf("%s %q: the chain is %+v", state, reason, x.Chain)
				}
				if x.Hint == "" {
					t.Errorf("%s %q, reachable %v: no hint", state, reason, reachable)
				}
				if !queued && !chainNames(x, "build-1") {
					t.Errorf("%s %q: the chain does not name the worker: %+v", state, reason, x.Chain)
				}
				if live := !terminal(s); live && !reachable && (!chainNames(x, "cannot be reached") || !strings.Contains(x.Hint, "start the worker build-1")) {
					t.Errorf("%s %q: unreachable, and why says %+v, %q", state, reason, x.Chain, x.Hint)
				}
			}
		}
	}
}

func chainNames(x explanation, word string) bool {
	return slices.ContainsFunc(x.Chain, func(s step) bool { return strings.Contains(s.What, word) })
}
