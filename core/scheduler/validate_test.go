package scheduler

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func many[V any](n int, v V) map[string]V {
	out := map[string]V{}
	for i := range n {
		out[fmt.Sprintf("k%d", i)] = v
	}
	return out
}

// TestARefusedRequestNamesItsFieldAndChangesNothing goes through the API: what
// is refused leaves no job, no record and no word to a worker.
func TestARefusedRequestNamesItsFieldAndChangesNothing(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		before := everything(t, w.store)
		for name, c := range refusals() {
			spec := job.Spec{Command: "x", Args: []string{"run=1s"}}
			request := "r"
			c.change(&spec, &request)
			id, err := w.s.StartJob(w.ctx, admin(), spec, request)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != c.field || e.Reason != c.reason || id != (job.ID{}) {
				t.Errorf("%s: %v (%+v), want field %s, reason %s", name, err, e, c.field, c.reason)
			}
		}
		if !maps.Equal(before, everything(t, w.store)) || len(p.starts) != 0 {
			t.Errorf("a refusal changed something")
		}
		if _, err := w.s.StartJob(w.ctx, admin(), job.Spec{Command: "x", Args: []string{"run=1s"}}, "r"); err != nil {
			t.Errorf("the request id of refused requests is taken: %v", err)
		}
	})
}

type refusal struct {
	change        func(s *job.Spec, request *string)
	field, reason string
}

func refusals() map[string]refusal {
	of := func(field, reason string, change func(s *job.Spec)) refusal {
		return refusal{func(s *job.Spec, _ *string) { change(s) }, field, reason}
	}
	all := map[string]refusal{
		"nothing to run":      of("command", "COMMAND_MISSING", func(s *job.Spec) { s.Command = "" }),
		"no ending":           of("command", "COMMAND_MISSING", func(s *job.Spec) { s.Command, s.Path = "", "script" }),
		"command with NUL":    of("command", "NUL", func(s *job.Spec) { s.Command = "a\x00" }),
		"command not UTF-8":   of("command", "NOT_UTF8", func(s *job.Spec) { s.Command = "a\xff" }),
		"args with NUL":       of("args", "NUL", func(s *job.Spec) { s.Args = []string{"ok", "\x00"} }),
		"too many args":       of("args", "TOO_MANY", func(s *job.Spec) { s.Args = make([]string, maxArgs+1) }),
		"too long args":       of("args", "TOO_LONG", func(s *job.Spec) { s.Args = []string{strings.Repeat("a", maxBytes)} }),
		"args and env":        of("args", "TOO_LONG", func(s *job.Spec) { s.Env = map[string]string{"A": strings.Repeat("a", maxBytes)} }),
		"env name":            of("env", "ENV_NAME", func(s *job.Spec) { s.Env = map[string]string{"A=B": "c"} }),
		"env value":           of("env", "NUL", func(s *job.Spec) { s.Env = map[string]string{"A": "\x00"} }),
		"secret name":         of("secrets", "SECRET_NAME", func(s *job.Spec) { s.Secrets = map[string][]byte{"1": nil} }),
		"too many labels":     of("labels", "TOO_MANY", func(s *job.Spec) { s.Labels = many(maxLabels+1, "v") }),
		"label name":          of("labels", "LABEL", func(s *job.Spec) { s.Labels = map[string]string{"": "v"} }),
		"label value":         of("labels", "LABEL", func(s *job.Spec) { s.Labels = map[string]string{"k": "a b"} }),
		"workdir":             of("workdir", "WORKDIR", func(s *job.Spec) { s.Workdir = "tmp" }),
		"workdir with NUL":    of("workdir", "NUL", func(s *job.Spec) { s.Workdir = "/\x00" }),
		"user with NUL":       of("user", "NUL", func(s *job.Spec) { s.User = "\x00" }),
		"name not UTF-8":      of("name", "NOT_UTF8", func(s *job.Spec) { s.Name = "\xff" }),
		"long name":           of("name", "TOO_LONG", func(s *job.Spec) { s.Name = strings.Repeat("n", maxName+1) }),
		"long stdin":          of("stdin", "TOO_LONG", func(s *job.Spec) { s.Stdin = make([]byte, job.MaxStdin+1) }),
		"long upload":         of("upload", "TOO_LONG", func(s *job.Spec) { s.Path, s.Upload = "a.sh", make([]byte, job.MaxUpload+1) }),
		"upload in a folder":  of("path", "PATH_REFUSED", func(s *job.Spec) { s.Path, s.Upload = "a/b.sh", []byte("x") }),
		"upload of nothing":   of("path", "PATH_REFUSED", func(s *job.Spec) { s.Upload = []byte("x") }),
		"low priority":        of("priority", "OUT_OF_RANGE", func(s *job.Spec) { s.Priority = -maxPriority - 1 }),
		"high priority":       of("priority", "OUT_OF_RANGE", func(s *job.Spec) { s.Priority = maxPriority + 1 }),
		"retries":             of("retry", "OUT_OF_RANGE", func(s *job.Spec) { s.Retry.Max = maxRetries + 1 }),
		"negative timeout":    of("timeout", "NEGATIVE", func(s *job.Spec) { s.Timeout = -1 }),
		"negative idle":       of("idle_timeout", "NEGATIVE", func(s *job.Spec) { s.IdleTimeout = -1 }),
		"negative queue time": of("queue_timeout", "NEGATIVE", func(s *job.Spec) { s.QueueTimeout = -1 }),
		"negative grace":      of("grace", "NEGATIVE", func(s *job.Spec) { s.Grace = -1 }),
		"negative linger":     of("linger", "NEGATIVE", func(s *job.Spec) { s.Linger = -1 }),
		"negative backoff":    of("retry", "NEGATIVE", func(s *job.Spec) { s.Retry.Backoff = -time.Second }),
		"long request id":     {func(_ *job.Spec, r *string) { *r = strings.Repeat("r", maxRequestID+1) }, "request_id", "TOO_LONG"},
	}
	for _, p := range []string{
		"/etc/passwd", "../x.sh", "a/../../x.sh", "a/..", "./x.sh", "a//x.sh", "a/./x.sh", "dir/", "x\x00.sh", strings.Repeat("p", 4096),
	} {
		all[fmt.Sprintf("path %.20q", p)] = of("path", "PATH_REFUSED", func(s *job.Spec) { s.Path = p })
	}
	all["path not UTF-8"] = of("path", "NOT_UTF8", func(s *job.Spec) { s.Path = "\xff.sh" })
	for _, v := range []string{"LD_PRELOAD", "PYTHONPATH", "PERL5LIB", "DROVER_JOB_ID", "BASH_ENV", "ENV", "NODE_OPTIONS", "RUBYOPT", "SHELLOPTS", "BASHOPTS"} {
		all["env "+v] = of("env", "ENV_REFUSED", func(s *job.Spec) { s.Env = map[string]string{v: "x"} })
	}
	return all
}

func TestWhatIsJustWithinBounds(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]job.Spec{
		"a command":     {Command: "x"},
		"a shell file":  {Path: "a.sh"},
		"a Python file": {Path: "sub/..a/a.py"},
		"odd names":     {Command: "x", Path: "...", Name: "näme", Env: map[string]string{"_A1": "", "ENVY": "x", "LDX": "y", "DROVER_ARRAY_INDEX": "7"}},
		"the longest": {
			Command: "x", Path: strings.Repeat("p", 4095), Args: make([]string, maxArgs), Name: strings.Repeat("n", maxName),
			Stdin: make([]byte, job.MaxStdin), Labels: many(maxLabels, ""), Priority: maxPriority, Retry: job.Retry{Max: maxRetries}, Workdir: "/",
		},
		"the lowest": {Command: "x", Priority: -maxPriority, Args: []string{strings.Repeat("a", maxBytes-1)}},
	} {
		if err := validate(&s, strings.Repeat("r", maxRequestID)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
