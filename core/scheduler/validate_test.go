package scheduler

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
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
		"a too long arg":      of("args", "TOO_LONG", func(s *job.Spec) { s.Args = []string{strings.Repeat("a", maxString+1)} }),
		"too long args":       of("args", "TOO_LONG", func(s *job.Spec) { s.Args = slices.Repeat([]string{strings.Repeat("a", maxBytes/16)}, 16) }),
		"args and env":        of("args", "TOO_LONG", func(s *job.Spec) { s.Env = many(16, strings.Repeat("a", maxBytes/16)) }),
		"a too long variable": of("env", "TOO_LONG", func(s *job.Spec) { s.Env = map[string]string{"A": strings.Repeat("a", maxString-1)} }),
		"too many variables":  of("env", "TOO_MANY", func(s *job.Spec) { s.Env = many(maxArgs+1, "") }),
		"env name":            of("env", "ENV_NAME", func(s *job.Spec) { s.Env = map[string]string{"A=B": "c"} }),
		"env value":           of("env", "NUL", func(s *job.Spec) { s.Env = map[string]string{"A": "\x00"} }),
		"secret name":         of("secrets", "SECRET_NAME", func(s *job.Spec) { s.Secrets = map[string][]byte{"1": nil} }),
		"long secret name":    of("secrets", "SECRET_NAME", func(s *job.Spec) { s.Secrets = map[string][]byte{strings.Repeat("S", 256): nil} }),
		"too many secrets":    of("secrets", "TOO_MANY", func(s *job.Spec) { s.Secrets = many(job.MaxSecrets+1, []byte("x")) }),
		"too long secrets":    of("secrets", "TOO_LONG", func(s *job.Spec) { s.Secrets = many(2, make([]byte, job.MaxSecretBytes/2)) }),
		"too many exit codes": of("retry.exit_codes", "TOO_MANY", func(s *job.Spec) { s.Retry.ExitCodes = make([]int32, maxExitCodes+1) }),
		"long worker":         of("worker_id", "TOO_LONG", func(s *job.Spec) { s.Worker = strings.Repeat("w", 256) }),
		"long command":        of("command", "TOO_LONG", func(s *job.Spec) { s.Command = strings.Repeat("c", 4096) }),
		"long workdir":        of("workdir", "TOO_LONG", func(s *job.Spec) { s.Workdir = "/" + strings.Repeat("d", 4095) }),
		"long user":           of("user", "TOO_LONG", func(s *job.Spec) { s.User = strings.Repeat("u", 256) }),
		"worker with NUL":     of("worker_id", "NUL", func(s *job.Spec) { s.Worker = "\x00" }),
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
	for _, v := range []string{"", "1A", "A B", "BASH_FUNC_ls%%", "A=B", "\xff"} {
		all["env "+v] = of("env", "ENV_NAME", func(s *job.Spec) { s.Env = map[string]string{v: "x"} })
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
		// Whether a job may have it is the policy of its worker's to say.
		"a variable for a worker to judge": {Command: "x", Env: map[string]string{"LD_PRELOAD": "x"}},
		"the longest": {
			Command: "x", Path: strings.Repeat("p", 4095), Args: make([]string, maxArgs), Name: strings.Repeat("n", maxName),
			Stdin: make([]byte, job.MaxStdin), Labels: many(maxLabels, ""), Priority: maxPriority,
			Retry: job.Retry{Max: maxRetries, ExitCodes: make([]int32, maxExitCodes)}, Workdir: "/" + strings.Repeat("d", 4094),
			Worker: strings.Repeat("w", 255), User: strings.Repeat("u", 255),
			Secrets: map[string][]byte{strings.Repeat("S", 255): make([]byte, job.MaxSecretBytes-255)},
		},
		"the longest command": {Command: strings.Repeat("c", 4095), Env: many(maxArgs, ""), Secrets: many(job.MaxSecrets, []byte("x"))},
		"the longest string":  {Command: "x", Env: map[string]string{"A": strings.Repeat("a", maxString-2)}},
		"the lowest":          {Command: "x", Priority: -maxPriority, Args: []string{strings.Repeat("a", maxString)}},
		"all the strings": {
			Command: "x", Args: append(slices.Repeat([]string{strings.Repeat("a", maxString)}, 7), strings.Repeat("b", maxString-8*perString+8)),
		},
	} {
		if err := validate(&s, strings.Repeat("r", maxRequestID)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWhatAWorkerTellsIsBounded: what a registration says once is refused when nobody
// could list it; what is told from time to time is shortened.
func TestWhatAWorkerTellsIsBounded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 1)
		worker := Caller{Name: "w1", Role: roleWorker}
		known, err := w.s.Worker(w.ctx, "w1")
		if err != nil {
			t.Fatal(err)
		}
		good := registry.Registration{Address: known.Address, Slots: 1, InstanceID: known.InstanceID, BootID: known.BootID}
		for field, change := range map[string]func(r *registry.Registration){
			"address":     func(r *registry.Registration) { r.Address = strings.Repeat("a", 256) },
			"boot_id":     func(r *registry.Registration) { r.BootID = strings.Repeat("b", 256) },
			"instance_id": func(r *registry.Registration) { r.InstanceID = strings.Repeat("i", 256) },
			"version":     func(r *registry.Registration) { r.Version = strings.Repeat("v", 256) },
			"commands":    func(r *registry.Registration) { r.Commands = make([]string, job.MaxCommands+1) },
			"labels":      func(r *registry.Registration) { r.Labels = many(maxLabels+1, "v") },
		} {
			reg := good
			change(&reg)
			_, err := w.s.Register(w.ctx, worker, reg)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		long := strings.Repeat("m", 1<<20)
		many := make([]job.Condition, 100)
		many[0] = job.Condition{Type: long, Message: long}
		if _, err := w.s.Heartbeat(w.ctx, worker, Heartbeat{ID: known.ID, Conditions: many}); err != nil {
			t.Fatal(err)
		}
		got, err := w.s.Worker(w.ctx, "w1")
		if err != nil || len(got.Conditions) != job.MaxConditions || len(got.Conditions[0].Type) != job.MaxCode || len(got.Conditions[0].Message) != job.MaxMessage {
			t.Errorf("%d conditions, %v", len(got.Conditions), err)
		}
		if _, err := w.s.Drain(w.ctx, "w1", Drain{Drain: true, Reason: long}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("a reason of 1 MiB: %v", err)
		}
	})
}

// TestALongReportIsShortened: a worker of another version may send any text.
func TestALongReportIsShortened(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id := d.running(plain())
	long := strings.Repeat("ä", 1<<20)
	r := d.says(id, job.Stopping)
	r.Reason, r.Message, r.Runner = long, long, long
	d.report(r)
	e := d.m.jobs[id]
	if n := len(e.Message) + len(e.Reason) + len(e.Result.Runner); n > job.MaxMessage+2*job.MaxCode || !utf8.ValidString(e.Message) || len(e.Message) < job.MaxMessage-4 {
		t.Errorf("%d bytes are kept; the message has %d", n, len(e.Message))
	}
}
