package runnertest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/runner"
)

// FakeName is the name and the only command of the Fake.
const FakeName = "fake"

// firstFakePID is above every pid that Linux gives (pid_max, proc(5)).
const firstFakePID = 1 << 22

// Fake is a runner without processes, for tests of what uses runners: a job is
// a function, chosen by the base name of its script. It passes the suite.
type Fake struct {
	behaviours map[string]func(*FakeJob) runner.Exit

	wait sync.WaitGroup // of the jobs

	mu   sync.Mutex // guards the fields below
	pids int
	jobs map[string]*FakeJob
}

// FakeJob is what the function of a job works with.
type FakeJob struct {
	runner.Spec
	Killed         <-chan struct{} // closed when a signal ended the job
	Stdin          io.Reader
	Stdout, Stderr *os.File
	Signals        <-chan syscall.Signal // those of Handle

	killed  chan struct{}
	signals chan syscall.Signal
	handled sync.Map // syscall.Signal: true is told, false is ignored

	mu    sync.Mutex // guards fatal
	fatal syscall.Signal
	files []*os.File
}

// kill ends the job once. It does not wait for a reader of its output.
func (j *FakeJob) kill(sig syscall.Signal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fatal == 0 {
		j.fatal = sig
		close(j.killed)
		closeAll(j.files)
	}
}

func (j *FakeJob) fatalSignal() syscall.Signal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fatal
}

// NewFake returns a Fake with the behaviours of the suite and more, by name.
func NewFake(more map[string]func(*FakeJob) runner.Exit) *Fake {
	f := &Fake{behaviours: fakeBehaviours(), jobs: map[string]*FakeJob{}}
	for name, do := range more {
		f.behaviours[name] = do
	}
	return f
}

// Info implements runner.Runner.
func (f *Fake) Info() runner.Info {
	return runner.Info{Name: FakeName, Version: "1.0.0", Extensions: []string{".fake"}}
}

// Start implements runner.Runner.
func (f *Fake) Start(s runner.Spec, exited func(runner.Exit)) (runner.Process, error) {
	do, ok := f.behaviours[filepath.Base(s.Script)]
	if !ok {
		return runner.Process{}, &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("the fake knows no %q", s.Script)}
	}
	if err := checkFake(s); err != nil {
		return runner.Process{}, &runner.StartError{Reason: runner.BadRequest, Message: err.Error()}
	}
	files, err := openFake(s)
	if err != nil {
		return runner.Process{}, &runner.StartError{Reason: runner.BadRequest, Message: err.Error()}
	}
	j := &FakeJob{
		Spec: s, Stdin: files[0], Stdout: files[1], Stderr: files[2], files: files,
		signals: make(chan syscall.Signal, 16), killed: make(chan struct{}),
	}
	j.Signals, j.Killed = j.signals, j.killed
	f.mu.Lock()
	f.pids++
	pid := firstFakePID + f.pids
	f.jobs[s.ID] = j
	f.mu.Unlock()
	f.wait.Go(func() {
		e := do(j)
		if sig := j.fatalSignal(); sig != 0 {
			e = runner.Exit{Signal: sig}
		}
		closeAll(files)
		f.mu.Lock()
		delete(f.jobs, s.ID)
		f.mu.Unlock()
		e.PID, e.Time = pid, time.Now()
		exited(e)
	})
	return runner.Process{PID: pid}, nil
}

// Signal implements runner.Runner.
func (f *Fake) Signal(id string, sig syscall.Signal) error {
	f.mu.Lock()
	j := f.jobs[id]
	f.mu.Unlock()
	if j == nil {
		return nil
	}
	told, handled := j.handled.Load(sig)
	switch {
	case sig == syscall.SIGKILL || !handled:
		j.kill(sig)
	case told.(bool):
		select {
		case j.signals <- sig:
		default: // as pending signals of one number do, they merge
		}
	}
	return nil
}

// Close kills the jobs and waits for their functions.
func (f *Fake) Close() error {
	f.mu.Lock()
	for _, j := range f.jobs {
		j.kill(syscall.SIGKILL)
	}
	f.mu.Unlock()
	f.wait.Wait()
	return nil
}

// Handle makes a signal one that the job hears of on Signals.
func (j *FakeJob) Handle(sig syscall.Signal) { j.handled.Store(sig, true) }

// Ignore makes the job deaf to a signal.
func (j *FakeJob) Ignore(sig syscall.Signal) { j.handled.Store(sig, false) }

func checkFake(s runner.Spec) error {
	for _, a := range slices.Concat(s.Args, s.Env) {
		if strings.ContainsRune(a, 0) {
			return errors.New("an argument or environment value holds a NUL byte")
		}
	}
	if _, err := os.Stat(s.Workdir); err != nil {
		return fmt.Errorf("working folder: %w", err)
	}
	return nil
}

// openFake opens the three files; the lanes so that a full pipe can be given up.
func openFake(s runner.Spec) ([]*os.File, error) {
	stdin := s.Stdin
	if stdin == "" {
		stdin = os.DevNull
	}
	var files []*os.File
	for _, o := range []struct {
		path string
		mode int
	}{{stdin, os.O_RDONLY}, {s.Stdout, os.O_RDWR | syscall.O_NONBLOCK}, {s.Stderr, os.O_RDWR | syscall.O_NONBLOCK}} {
		f, err := os.OpenFile(o.path, o.mode, 0)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // once too often is no matter
	}
}

// fakeBehaviours are those of the suite that need no processes.
func fakeBehaviours() map[string]func(*FakeJob) runner.Exit {
	say := func(w io.Writer, text string) runner.Exit {
		if _, err := io.WriteString(w, text); err != nil {
			return runner.Exit{Code: 1}
		}
		return runner.Exit{}
	}
	return map[string]func(*FakeJob) runner.Exit{
		"args":        func(j *FakeJob) runner.Exit { return say(j.Stdout, terminated(j.Args)) },
		"environ":     func(j *FakeJob) runner.Exit { return say(j.Stdout, terminated(j.Env)) },
		"canary.fake": func(*FakeJob) runner.Exit { return runner.Exit{} }, // of a worker that tries the plugin
		"cwd":         func(j *FakeJob) runner.Exit { return say(j.Stdout, j.Workdir+"\n") },
		"exit":        func(j *FakeJob) runner.Exit { return runner.Exit{Code: number(j)} },
		"kill":        func(j *FakeJob) runner.Exit { return runner.Exit{Signal: syscall.Signal(number(j))} },
		"sleep":       forever,
		"cat": func(j *FakeJob) runner.Exit {
			if _, err := io.Copy(j.Stdout, j.Stdin); err != nil {
				return runner.Exit{Code: 1}
			}
			return runner.Exit{}
		},
		"stubborn": func(j *FakeJob) runner.Exit {
			j.Ignore(syscall.SIGTERM)
			say(j.Stdout, "ready\n")
			return forever(j)
		},
		"handled": func(j *FakeJob) runner.Exit {
			j.Handle(syscall.SIGTERM)
			say(j.Stdout, "ready\n")
			select {
			case <-j.Signals:
				say(j.Stdout, "TERM\n")
				return runner.Exit{Code: 3}
			case <-j.Killed:
				return runner.Exit{}
			}
		},
		"copy": func(j *FakeJob) runner.Exit {
			for i, to := range []*os.File{j.Stdout, j.Stderr} {
				data, err := os.ReadFile(j.Args[i])
				if err != nil {
					return runner.Exit{Code: 1}
				}
				say(to, string(data))
			}
			return runner.Exit{}
		},
		"closed": func(j *FakeJob) runner.Exit {
			say(j.Stdout, "said\n")
			closeAll([]*os.File{j.Stdout, j.Stderr})
			return forever(j)
		},
	}
}

func forever(j *FakeJob) runner.Exit {
	<-j.Killed
	return runner.Exit{}
}

func number(j *FakeJob) int {
	n, err := strconv.Atoi(strings.Join(j.Args, " "))
	if err != nil {
		return 2
	}
	return n
}

func terminated(list []string) string {
	var b strings.Builder
	for _, s := range list {
		b.WriteString(s + "\x00")
	}
	return b.String()
}
