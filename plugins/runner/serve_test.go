package runner

import (
	"bytes"
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a runner whose Start is a function of the test.
type scripted struct {
	start func(Spec, func(Exit)) (Process, error)
}

func (r *scripted) Info() Info {
	return Info{Name: "x", Version: "1.2.3", Commands: []string{"x", "y"}}
}

func (r *scripted) Start(s Spec, exited func(Exit)) (Process, error) { return r.start(s, exited) }

func (r *scripted) Signal(string, syscall.Signal) error { return nil }

func (r *scripted) Close() error { return nil }

func TestServeByHandExplainsItself(t *testing.T) { //nolint:paralleltest // sets the environment
	t.Setenv(CookieKey, "")
	err := serve(&scripted{}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "drover plugin install") {
		t.Errorf("started by hand: %v", err)
	}
	t.Setenv(CookieKey, CookieValue)
	t.Setenv(DirVariable, "")
	if err := serve(&scripted{}, nil, nil); err == nil || !strings.Contains(err.Error(), DirVariable) {
		t.Errorf("without a folder: %v", err)
	}
	t.Setenv(DirVariable, t.TempDir())
	t.Setenv(IdleVar, "soon")
	if err := serve(&scripted{}, nil, nil); err == nil || !strings.Contains(err.Error(), IdleVar) {
		t.Errorf("with a bad idle time: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--describe", "--version"} {
		var out bytes.Buffer
		if err := serve(&scripted{}, []string{flag}, &out); err != nil {
			t.Fatal(err)
		}
		var d Description
		if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.Name != "x" || d.Version != "1.2.3" || d.Protocol != Protocol || len(d.Commands) != 2 {
			t.Errorf("%s: %s, %v", flag, out.String(), err)
		}
	}
}

// TestWhatAStartBecomes looks at runners that do not behave.
func TestWhatAStartBecomes(t *testing.T) {
	t.Parallel()
	lanes := t.TempDir()
	for _, n := range []string{"/out", "/err"} {
		if err := syscall.Mkfifo(lanes+n, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		start func(Spec, func(Exit)) (Process, error)
		want  func(*runnerv1.Exited) bool
	}{
		"a panic": {
			func(Spec, func(Exit)) (Process, error) { panic("boom") },
			func(e *runnerv1.Exited) bool {
				return e.GetError().GetReason() == Internal && strings.Contains(e.GetError().GetMessage(), "boom")
			},
		},
		"an error of no kind": {
			func(Spec, func(Exit)) (Process, error) { return Process{}, syscall.EIO },
			func(e *runnerv1.Exited) bool { return e.GetError().GetReason() == Internal },
		},
		"an exit told before the start": {
			func(_ Spec, exited func(Exit)) (Process, error) {
				exited(Exit{PID: 7, Code: 3})
				return Process{PID: 7, StartTicks: 1}, nil
			},
			func(e *runnerv1.Exited) bool { return e.GetExitCode() == 3 && e.GetPid() == 7 },
		},
		"an exit code that does not fit, P6": {
			func(_ Spec, exited func(Exit)) (Process, error) {
				exited(Exit{PID: 7, Code: 1 << 32})
				return Process{PID: 7, StartTicks: 1}, nil
			},
			func(e *runnerv1.Exited) bool { return e.GetResult() == nil && e.GetPid() == 7 },
		},
		"an exit told although the start failed": {
			func(_ Spec, exited func(Exit)) (Process, error) {
				exited(Exit{PID: 7})
				return Process{}, &StartError{Resource, "no room"}
			},
			func(e *runnerv1.Exited) bool { return e.GetError().GetReason() == Resource && e.GetPid() == 0 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := NewServer(&scripted{c.start}, ServerConfig{})
			if err != nil {
				t.Fatal(err)
			}
			s.start(&runnerv1.Start{Id: "a", Stdout: lanes + "/out", Stderr: lanes + "/err"}, nil)
			s.mu.Lock()
			e, running := s.attempts["a"].exited, s.running
			s.mu.Unlock()
			if !c.want(e) || running != 0 {
				t.Errorf("%v, %d running", e, running)
			}
			s.ack([]string{"a"})
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
