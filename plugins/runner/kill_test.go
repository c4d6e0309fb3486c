package runner

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// killable is a server whose folder is looked at as if its process was killed now.
type killable struct {
	*Server
	t   *testing.T
	dir string
}

func newKillable(t *testing.T, r Runner) *killable {
	t.Helper()
	dir := t.TempDir()
	s, err := NewServer(r, ServerConfig{Journal: filepath.Join(dir, JournalName)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &killable{s, t, dir}
}

func (k *killable) left() Journal {
	k.t.Helper()
	j, err := ReadJournal(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	return j
}

// ask is a Start with two pipes.
func (k *killable) ask(id string) *runnerv1.Start {
	k.t.Helper()
	pipe := filepath.Join(k.t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		k.t.Fatal(err)
	}
	return &runnerv1.Start{Id: id, Stdout: pipe, Stderr: pipe}
}

// TestAnExitIsOnDiskWhenItsProcessIsReaped: P7. A runner reaps once exited returns.
// An exit that came before Start had returned was on disk only later: a kill in
// between lost it.
func TestAnExitIsOnDiskWhenItsProcessIsReaped(t *testing.T) {
	t.Parallel()
	var k *killable
	k = newKillable(t, &scripted{func(s Spec, exited func(Exit)) (Process, error) {
		exited(Exit{PID: 7, Code: 3})
		if left := k.left(); left.Exited[s.ID].GetExitCode() != 3 {
			t.Errorf("reaped, and the journal has %+v", left)
		}
		k.compact()
		if left := k.left(); left.Exited[s.ID].GetExitCode() != 3 || left.Started[s.ID] == nil {
			t.Errorf("compacted, the journal has %+v", left)
		}
		return Process{PID: 7, StartTicks: 1}, nil
	}})
	k.start(k.ask("a"), nil)
	if left := k.left(); left.Exited["a"].GetExitCode() != 3 || left.Started["a"].GetPid() != 7 {
		t.Errorf("at the end the journal has %+v", left)
	}
}

// TestTheNoteOfAForkOutlivesCompaction: the journal was rewritten without the notes
// of starts under way. After a kill they counted as starts that never reached the
// plugin, and were sent again though their processes existed (P2).
func TestTheNoteOfAForkOutlivesCompaction(t *testing.T) {
	t.Parallel()
	var k *killable
	k = newKillable(t, &scripted{func(s Spec, _ func(Exit)) (Process, error) {
		k.compact()
		if left := k.left(); left.Started[s.ID] == nil || left.Started[s.ID].GetStartTicks() == 0 {
			t.Errorf("the journal has %+v", left)
		}
		return Process{PID: 7, StartTicks: 1}, nil
	}})
	k.start(k.ask("a"), nil)
}

// TestNothingIsStartedThatCannotBeNoted: P2, on a full disk. After a kill nobody
// would have known of the process.
func TestNothingIsStartedThatCannotBeNoted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, JournalName)); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(&keeping{scripted{func(Spec, func(Exit)) (Process, error) {
		t.Error("it was started")
		return Process{}, &StartError{Reason: Internal}
	}}}, ServerConfig{Journal: filepath.Join(dir, JournalName)})
	if err != nil {
		t.Fatal(err)
	}
	k := &killable{s, t, dir}
	k.start(k.ask("a"), nil)
	if e := s.attempts["a"].exited; e.GetError().GetReason() != Resource {
		t.Errorf("it ended with %v", e)
	}
	if _, err := os.Stat(filepath.Join(dir, keepsName)); err == nil {
		t.Error("what cannot be written is promised to be in the journal")
	}
	_ = s.Close() // the journal cannot be written
}

// keeping is a runner that keeps.
type keeping struct{ scripted }

func (r *keeping) Info() Info { return Info{Name: "x", Version: "1", Keeps: true} }

func TestWithdrawnStartsAreForgotten(t *testing.T) {
	t.Parallel()
	var k *killable
	k = newKillable(t, &keeping{scripted{func(s Spec, _ func(Exit)) (Process, error) {
		left := k.left()
		if !left.Keeps || left.Started[s.ID] == nil {
			t.Errorf("before the fork the journal has %+v", left)
		}
		return Process{PID: 7, StartTicks: 1}, nil
	}}})
	k.start(k.ask("a"), nil)
	k.start(k.ask("b"), nil)
	f, err := os.OpenFile(filepath.Join(k.dir, JournalName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("torn by the kill"); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := Withdraw(k.dir, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if left := k.left(); left.Started["a"] != nil || left.Started["b"] == nil {
		t.Errorf("the journal has %+v", left)
	}
	if err := Withdraw(t.TempDir(), []string{"a"}); err == nil {
		t.Error("a journal that is not there was written")
	}
}
