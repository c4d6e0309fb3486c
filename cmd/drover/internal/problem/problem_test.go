package problem_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
)

// TestExitCodes: scripts around drover rely on them.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	plain := errors.New("broken")
	cases := []struct {
		name string
		err  error
		want problem.Code
	}{
		{"nil", nil, 0},
		{"unclassified", plain, 1},
		{"internal", errs.E("x", errs.Internal, "", plain), 1},
		{"precondition", errs.E("x", errs.Precondition, "", plain), 1},
		{"exists", errs.E("x", errs.Exists, "", plain), 1},
		{"invalid", errs.Field("x", "f", "R", "no"), 2},
		{"usage", problem.UsageError("run", "no script"), 2},
		{"not found", errs.E("x", errs.NotFound, "", plain), 3},
		{"denied", errs.E("x", errs.Denied, "", plain), 4},
		{"unauthenticated", errs.E("x", errs.Unauthenticated, "", plain), 4},
		{"unavailable", errs.E("x", errs.Unavailable, "", plain), 5},
		{"timeout", errs.E("x", errs.Timeout, "", plain), 5},
		{"a code", problem.Code(137), 137},
		{"a wrapped code", fmt.Errorf("job: %w", problem.TimedOut), 124},
		{"an overridden code", problem.WithCode(errs.E("x", errs.NotFound, "", plain), problem.NoCommand), 127},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := problem.CodeOf(c.err); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
	if problem.WithCode(nil, 4) != nil {
		t.Error("no error became one")
	}
}

func printed(err error) string {
	var b bytes.Buffer
	problem.Print(&b, err)
	return b.String()
}

func TestPrintSaysWhatWhyAndWhatToDo(t *testing.T) {
	t.Parallel()
	refused := errs.E("cannot reach the scheduler at 127.0.0.1:7420", errs.Unavailable, "", errors.New("connection refused")).
		WithHint(`start one with "drover dev", or set DROVER_ADDRESS`)
	want := "drover: cannot reach the scheduler at 127.0.0.1:7420: connection refused\n" +
		"hint: start one with \"drover dev\", or set DROVER_ADDRESS\n"
	if got := printed(refused); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := printed(problem.WithCode(refused, 125)); got != want {
		t.Errorf("with a code: %q", got)
	}
	if got := printed(problem.Code(3)) + printed(nil); got != "" {
		t.Errorf("a code printed %q", got)
	}
	if got := printed(errors.New("one\n  two\n\x1b[31mthree")); got != "drover: one; two; \\x1b[31mthree\n" {
		t.Errorf("%q", got)
	}
}

func withInfo(t *testing.T, code codes.Code, message, reason, hint string) error {
	t.Helper()
	st, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{
		Domain: "drover", Reason: reason, Metadata: map[string]string{"hint": hint},
	})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestStatusesOfDroverSpeakForThemselves(t *testing.T) {
	t.Parallel()
	err := withInfo(t, codes.NotFound, `get job: there is no job "x"`, "JOB_UNKNOWN", "see drover jobs")
	got := problem.FromStatus("show the job", err)
	if errs.ReasonOf(got) != "JOB_UNKNOWN" || problem.CodeOf(got) != problem.NotFound || !problem.Reported(err) {
		t.Errorf("reason %q, code %d", errs.ReasonOf(got), problem.CodeOf(got))
	}
	if text := printed(got); text != "drover: get job: there is no job \"x\"\nhint: see drover jobs\n" {
		t.Errorf("%q", text)
	}
	bare := withInfo(t, codes.Internal, "whole message", "X", "")
	if text := printed(problem.FromStatus("try", bare)); text != "drover: try: whole message\n" {
		t.Errorf("%q", text)
	}
}

func TestOtherStatusesGetTheOperation(t *testing.T) {
	t.Parallel()
	err := status.Error(codes.Unimplemented, "unknown method")
	if text := printed(problem.FromStatus("list jobs", err)); text != "drover: list jobs: unknown method\n" {
		t.Errorf("%q", text)
	}
	if problem.Reported(err) || problem.Reported(nil) || problem.Reported(errors.New("x")) {
		t.Error("a status of the connection passed for one of drover")
	}
	plain := errors.New("plain")
	if got := problem.FromStatus("x", plain); !errors.Is(got, plain) {
		t.Errorf("%v", got)
	}
	if problem.FromStatus("x", nil) != nil {
		t.Error("no error became one")
	}
}

func TestEveryStatusCodeHasAnExitCode(t *testing.T) {
	t.Parallel()
	want := map[codes.Code]problem.Code{
		codes.InvalidArgument: 2, codes.OutOfRange: 2, codes.NotFound: 3, codes.PermissionDenied: 4,
		codes.Unauthenticated: 4, codes.Unavailable: 5, codes.DeadlineExceeded: 5,
	}
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		expect := want[c]
		if expect == 0 {
			expect = problem.Failed
		}
		if got := problem.CodeOf(problem.FromStatus("x", status.Error(c, "m"))); got != expect {
			t.Errorf("%v: %d, want %d", c, got, expect)
		}
	}
}
