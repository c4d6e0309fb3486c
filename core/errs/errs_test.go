package errs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/droverhq/drover/core/errs"
)

func TestErrorSaysWhatWasDoneAndWhy(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		err  error
		want string
	}{
		{"cause", errs.E("open store", errs.Internal, "STORE", fs.ErrPermission), "open store: permission denied"},
		{"reason stands in for a missing cause", errs.E("place job", errs.NotFound, "WORKER_UNKNOWN", nil), "place job: WORKER_UNKNOWN"},
		{"field", errs.Field("start job", "path", "PATH_REFUSED", "%q leads out", "../x"), `start job: path: "../x" leads out`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := c.err.Error(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestKindAndReasonComeThroughWrapping(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("register: %w", errs.E("x", errs.Exists, "NAME_TAKEN", fs.ErrExist))
	if k := errs.KindOf(err); k != errs.Exists {
		t.Errorf("kind %v", k)
	}
	if r := errs.ReasonOf(err); r != "NAME_TAKEN" {
		t.Errorf("reason %q", r)
	}
	if !errors.Is(err, fs.ErrExist) {
		t.Error("the cause is lost")
	}
	if k := errs.KindOf(errors.New("plain")); k != errs.Internal {
		t.Errorf("a plain error has kind %v", k)
	}
}

func TestWithHintLeavesTheOriginalAlone(t *testing.T) {
	t.Parallel()
	e := errs.E("x", errs.Invalid, "R", nil)
	if h := e.WithHint("try %s", "y"); h.Hint != "try y" || e.Hint != "" {
		t.Errorf("copy %q, original %q", h.Hint, e.Hint)
	}
}

func TestEveryKindHasAName(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for k := errs.Internal; k <= errs.Canceled; k++ {
		if seen[k.String()] {
			t.Errorf("kind %d repeats the name %q", k, k)
		}
		seen[k.String()] = true
	}
}
