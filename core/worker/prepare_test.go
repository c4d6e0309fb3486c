package worker

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

func newPreparer(t *testing.T, w *world, p Policy) *preparer {
	t.Helper()
	data := t.TempDir()
	folders, err := makeAttemptFolders(data, 0o711, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.AllowRoot = true // tests may run as root, and few are about that
	return &preparer{
		log: slog.New(slog.DiscardHandler), worker: "w1", root: os.Geteuid() == 0, boot: "b", policy: p, scratch: data, base: baseEnviron([]string{"TMPDIR=/x", "HOME=/root"}),
		folders: folders, runners: w, scripts: worldScripts{w}, groups: worldGroups{w}, output: worldOutput{w},
		find: (&finder{}).find, account: func(name string) (*account, error) {
			return &account{name: name, home: "/home/" + name, cred: Credential{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Groups: []uint32{4}}}, nil
		},
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{Users: []string{"ann"}})
	o := order(1)
	o.Spec.User = "ann"
	o.Spec.Secrets = map[string][]byte{"s": nil}
	h, err := p.prepare(t.Context(), o.Key, &o.Spec)
	if os.Geteuid() != 0 {
		if errs.ReasonOf(err) != job.ReasonPolicy || !strings.Contains(err.Error(), "root") {
			t.Fatalf("without root: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if h.launch.User == nil || !slices.Equal(h.launch.User.Groups, []uint32{4}) {
		t.Errorf("%+v", h.launch.User)
	}
	for _, want := range []string{"HOME=/home/ann", "USER=ann", "LOGNAME=ann"} {
		if !slices.Contains(h.launch.Env, want) {
			t.Errorf("no %s in %q", want, h.launch.Env)
		}
	}
	if slices.Contains(h.launch.Env, "TMPDIR=/x") {
		t.Error("TMPDIR of the worker's user")
	}
}

func TestAccountsAreLookedUp(t *testing.T) {
	t.Parallel()
	a, err := findAccount("root")
	if err != nil || a.cred.UID != 0 || a.home == "" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := findAccount("drover-no-such-user"); errs.ReasonOf(err) != job.ReasonPolicy {
		t.Errorf("%v", err)
	}
}

func TestAFailedPreparationHoldsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld()
	p := newPreparer(t, w, Policy{})
	o := order(1)
	o.Spec.Stdin = []byte("x")
	p.folders.stdin = "/proc/no-such-folder"
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != reasonNoSpace {
		t.Fatalf("%v", err)
	}
	if len(w.groups) != 0 || w.pins != 0 || !w.outputs[o.Key].finished {
		t.Errorf("held: %d groups, %d pins, output %+v", len(w.groups), w.pins, w.outputs[o.Key])
	}
}

func TestInterpretersOfThePolicyRunScripts(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{Commands: []string{"sh", "rel/x"}})
	o := order(1)
	o.Spec.Command = "sh"
	h, err := p.prepare(t.Context(), o.Key, &o.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if h.runner.Name != binaryRunner || !filepath.IsAbs(h.launch.Command) || h.launch.Script != "/gen/7/count.sh" {
		t.Errorf("%s %+v", h.runner.Name, h.launch)
	}
	o.Spec.Command = "rel/x"
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonPath {
		t.Errorf("relative command: %v", err)
	}
}

// TestP13AnInterpreterForScriptsRunsNothingElse: with it alone, nobody gets "perl -e".
func TestP13AnInterpreterForScriptsRunsNothingElse(t *testing.T) {
	t.Parallel()
	sh, err := lookPath(fallbackPath, "sh")
	if err != nil {
		t.Fatal(err)
	}
	p := newPreparer(t, newWorld(), Policy{Commands: []string{"true"}, Interpreters: []string{"sh"}})
	for i, command := range []string{"sh", sh} {
		script := order(byte(i) + 1)
		script.Spec.Command, script.Spec.Args = command, []string{"-c", "id"}
		h, err := p.prepare(t.Context(), script.Key, &script.Spec)
		if err != nil {
			t.Fatal(err)
		}
		// COMMAND SCRIPT ARGS: what comes after the script, an absolute path, is the script's.
		if h.runner.Name != binaryRunner || h.launch.Command != sh || h.launch.Script != "/gen/7/count.sh" || !filepath.IsAbs(h.launch.Script) {
			t.Errorf("%s %+v", h.runner.Name, h.launch)
		}
		bare := order(2)
		bare.Spec.Command, bare.Spec.Path, bare.Spec.Args = command, "", []string{"-c", "id"}
		if _, err := p.prepare(t.Context(), bare.Key, &bare.Spec); errs.ReasonOf(err) != job.ReasonPolicy {
			t.Errorf("%s without a script: %v", command, err)
		}
	}
	none := order(3)
	none.Spec.Command = "cat"
	if _, err := p.prepare(t.Context(), none.Key, &none.Spec); errs.ReasonOf(err) != job.ReasonNoRunner {
		t.Errorf("an interpreter that is not allowed: %v", err)
	}
}

// TestP13TheInterpreterIsFoundInThePathOfTheWorker: whatever PATH a request may set.
func TestP13TheInterpreterIsFoundInThePathOfTheWorker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fake := filepath.Join(dir, "sh")
	if err := os.WriteFile(fake, []byte("#!/bin/false"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPreparer(t, newWorld(), Policy{Env: []string{"PATH"}, Commands: []string{"sh"}})
	p.base["PATH"] = ".:" + fallbackPath
	want, err := lookPath(fallbackPath, "sh")
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{dir, ".", ""} {
		o := order(byte(2*i) + 1)
		o.Spec.Env, o.Spec.Workdir = map[string]string{"PATH": path}, dir
		h, err := p.prepare(t.Context(), o.Key, &o.Spec)
		if err != nil || h.launch.Interpreter != want || !slices.Contains(h.launch.Env, "PATH="+path) {
			t.Errorf("PATH=%q: %v, %+v", path, err, h)
		}
		o.Key = testKey(byte(2*i) + 2)
		o.Spec.Command, o.Spec.Path = "sh", ""
		if h, err = p.prepare(t.Context(), o.Key, &o.Spec); err != nil || h.launch.Command != want {
			t.Errorf("PATH=%q, without a script: %v, %+v", path, err, h)
		}
	}
	p.base["PATH"] = dir + "/none"
	o := order(1)
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonSpawn || !strings.Contains(err.Error(), "NOT_FOUND") {
		t.Errorf("no interpreter: %v", err)
	}
}

func TestP13APathOfARequestDoesNotChooseTheInterpreterOfAWrapper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i, c := range []struct {
		text string
		want string
	}{
		{"#!/usr/bin/env sh\n", job.ReasonPolicy}, {"#! /bin/env -S sh -e\n", job.ReasonPolicy}, {"#!/bin/sh\n", ""}, {"\x7fELF", ""}, {"", ""},
	} {
		tool := filepath.Join(dir, "tool"+strconv.Itoa(i))
		if err := os.WriteFile(tool, []byte(c.text), 0o755); err != nil {
			t.Fatal(err)
		}
		p := newPreparer(t, newWorld(), Policy{Env: []string{"PATH"}, Commands: []string{tool}})
		o := order(byte(i) + 1)
		o.Spec.Command, o.Spec.Path, o.Spec.Env = tool, "", map[string]string{"PATH": "/x"}
		if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != c.want {
			t.Errorf("%q: %v", c.text, err)
		}
		o.Key, o.Spec.Env = testKey(byte(i)+100), nil
		if _, err := p.prepare(t.Context(), o.Key, &o.Spec); err != nil {
			t.Errorf("%q without PATH: %v", c.text, err)
		}
	}
}

// silent is a runner that does not say what its interpreter is.
type silent struct{ *world }

func (silent) Interpreter(journal.Runner) string { return "" }

func TestP13ARunnerThatLooksForItselfGetsNoPathOfARequest(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{Env: []string{"PATH"}})
	p.runners = silent{newWorld()}
	o := order(1)
	o.Spec.Env = map[string]string{"PATH": "/tmp"}
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonPolicy {
		t.Errorf("%v", err)
	}
	o.Spec.Env = nil
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); err != nil {
		t.Error(err)
	}
}

func TestARunnerInTroubleIsNotNoRunner(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.lookups["bash"] = errors.New("it keeps dying")
	w.lookups["binary"] = errors.New("it keeps dying, too")
	p := newPreparer(t, w, Policy{Commands: []string{"*"}})
	o := order(1)
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonRunnerFailed {
		t.Errorf("%v", err)
	}
	o.Spec.Path = ""
	if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonRunnerFailed {
		t.Errorf("%v", err)
	}
}

func TestAttemptFoldersAreMadeOnlyWhenNeeded(t *testing.T) {
	t.Parallel()
	f := newPreparer(t, newWorld(), Policy{}).folders
	if _, err := f.make("a", &job.Spec{}, nil); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{f.stdin, f.root, f.work, f.trash.dir} {
		if all, err := os.ReadDir(dir); len(all) != 0 || err != nil {
			t.Errorf("made %v, %v", all, err)
		}
	}
	// What a crash left is not trusted.
	if err := os.MkdirAll(filepath.Join(f.root, "b", "secrets", "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := f.make("b", &job.Spec{Secrets: map[string][]byte{"new": []byte("1")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := os.ReadDir(files.secrets); len(all) != 1 || all[0].Name() != "new" {
		t.Errorf("secrets %v", all)
	}
	if _, err := f.make("c", &job.Spec{Stdin: []byte("in"), Path: "x", Upload: []byte("up")}, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.sweep(map[string]bool{"b": true}); err != nil {
		t.Fatal(err)
	}
	if f.existing("b") != files || f.existing("c") != (attemptFiles{}) {
		t.Errorf("after a sweep: %+v, %+v", f.existing("b"), f.existing("c"))
	}
	if all, _ := os.ReadDir(f.work); len(all) != 0 {
		t.Errorf("working folders are left: %v", all)
	}
	if goes, err := f.trash.round(t.Context()); goes || err != nil {
		t.Errorf("%v, %v", goes, err)
	}
	if all, _ := os.ReadDir(f.trash.dir); len(all) != 0 {
		t.Errorf("in the trash: %v", all)
	}
}

func TestCommandsAreSearchedOnceASecond(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tool")
	synctest.Test(t, func(t *testing.T) {
		f := &finder{}
		find := func(command string) (string, error) { return f.find(nil, dir, command) }
		if _, err := find("tool"); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a missing one is not remembered, a found one is
			if got, err := find("tool"); err != nil || got != file {
				t.Errorf("%q, %v", got, err)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := find("tool"); err != nil {
			t.Errorf("within a second: %v", err)
		}
		time.Sleep(finderTrust)
		if _, err := find("tool"); err == nil {
			t.Error("a removed command is believed for ever")
		}
		for i := range 2000 {
			f.known[wanted{command: strconv.Itoa(i)}] = place{}
		}
		if _, err := find("/bin/sh"); err != nil || len(f.known) != 1 {
			t.Errorf("%d places are kept, %v", len(f.known), err)
		}
	})
	t.Chdir(dir)
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{".", "", ":", "./", "relative"} {
		if got, err := lookPath(path, "tool"); err == nil {
			t.Errorf("PATH %q: a command of the working folder was found: %s", path, got)
		}
	}
	if got, err := lookPath(dir, "./tool"); err == nil {
		t.Errorf("a relative path was found: %s", got)
	}
}

func TestFileNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"a": true, "a.b": true, "": false, ".": false, "..": false, "a/b": false, "\x00": false, strings.Repeat("x", 256): false} {
		if fileName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func TestUploadedScripts(t *testing.T) {
	t.Parallel()
	script := []byte("echo $0\n")
	for name, c := range map[string]struct {
		policy Policy
		change func(*job.Spec)
		reason string
	}{
		"taken":               {Policy{Uploads: true}, func(*job.Spec) {}, ""},
		"taken by its sum":    {Policy{Uploads: true}, func(s *job.Spec) { s.UploadSHA256 = job.SHA256(script) }, ""},
		"against the policy":  {Policy{Commands: []string{"*"}}, func(*job.Spec) {}, job.ReasonPolicy},
		"not what was signed": {Policy{Uploads: true}, func(s *job.Spec) { s.UploadSHA256 = job.SHA256(nil) }, reasonBadRequest},
		"not kept any more":   {Policy{Uploads: true}, func(s *job.Spec) { s.Upload, s.UploadSHA256 = nil, job.SHA256(script) }, reasonBadRequest},
		"too long":            {Policy{Uploads: true}, func(s *job.Spec) { s.Upload = make([]byte, job.MaxUpload+1) }, reasonBadRequest},
		"in a folder":         {Policy{Uploads: true}, func(s *job.Spec) { s.Path = "a/b.sh" }, job.ReasonPath},
		"up":                  {Policy{Uploads: true}, func(s *job.Spec) { s.Path = ".." }, job.ReasonPath},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			p := newPreparer(t, w, c.policy)
			o := order(1)
			o.Spec.Path, o.Spec.Upload = "local.sh", script
			c.change(&o.Spec)
			h, err := p.prepare(t.Context(), o.Key, &o.Spec)
			if errs.ReasonOf(err) != c.reason || (err == nil) != (c.reason == "") {
				t.Fatalf("%v, want the reason %q", err, c.reason)
			}
			if err != nil {
				if left, _ := os.ReadDir(p.folders.work); len(left) != 0 || len(w.outputs) != 0 {
					t.Errorf("a refused one left %v, %v", left, w.outputs)
				}
				return
			}
			got, err := os.ReadFile(h.launch.Script)
			if err != nil || string(got) != string(script) || filepath.Base(h.launch.Script) != "local.sh" {
				t.Errorf("%s holds %q, %v", h.launch.Script, got, err)
			}
			if h.launch.Workdir != filepath.Join(p.folders.work, attemptID(o.Key)) || h.intent.Script.SHA256 != job.SHA256(script) {
				t.Errorf("it begins in %s; %+v", h.launch.Workdir, h.intent.Script)
			}
			if h.intent.Spec.Upload != nil || !h.intent.Folder || w.pins != 0 {
				t.Errorf("intent %+v, %d pins", h.intent, w.pins)
			}
		})
	}
}

func TestAttemptIDs(t *testing.T) {
	t.Parallel()
	k := testKey(3)
	k.Attempt = 12
	if got, err := parseAttemptID(attemptID(k)); err != nil || got != k {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "x.1", k.Job.String(), k.Job.String() + ".x", k.Job.String() + ".5000000000"} {
		if _, err := parseAttemptID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestFeedTranslatesNews(t *testing.T) {
	t.Parallel()
	f := NewFeed()
	id := attemptID(testKey(1))
	f.Push([]ProcessEvent{
		{ID: "not ours", Gone: true},
		{ID: id, Exit: &ProcessExit{PID: 4, Signal: syscall.SIGKILL, Code: 9, Evidence: job.PidFD}},
		{ID: id, Exit: &ProcessExit{SpawnReason: "NOT_FOUND", SpawnError: "ruby"}},
		{ID: id, Gone: true},
		{ID: id},
	})
	evs := f.in.take(nil)
	if len(evs) != 3 {
		t.Fatalf("%d events", len(evs))
	}
	if x := evs[0].(ProcessExited); x.Exit.Signal != "SIGKILL" || x.Exit.Code != 0 || x.PID != 4 {
		t.Errorf("%+v", x)
	}
	if x := evs[1].(ProcessExited); x.Exit.SpawnError != "NOT_FOUND: ruby" {
		t.Errorf("%+v", x)
	}
	if signalName(syscall.Signal(40)) != "SIG40" {
		t.Errorf("real-time signal: %s", signalName(40))
	}
}

// TestFeedJoinsAStartAndItsExit: only the exit of the same process takes it along.
func TestFeedJoinsAStartAndItsExit(t *testing.T) {
	t.Parallel()
	f := NewFeed()
	started := func(n byte, pid int) ProcessEvent {
		return ProcessEvent{ID: attemptID(testKey(n)), Started: &journal.Started{PID: pid}}
	}
	exited := func(n byte, pid int) ProcessEvent {
		return ProcessEvent{ID: attemptID(testKey(n)), Exit: &ProcessExit{PID: pid}}
	}
	f.Push([]ProcessEvent{started(1, 7), started(2, 8), exited(3, 9), started(4, 5), exited(1, 7), exited(4, 6)})
	evs := f.in.take(nil)
	if len(evs) != 5 {
		t.Fatalf("%d events: %+v", len(evs), evs)
	}
	if x, ok := evs[0].(ProcessStarted); !ok || x.Started.PID != 8 {
		t.Errorf("first %+v, want the start of one that runs", evs[0])
	}
	for i, want := range map[int]int{1: 0, 3: 7, 4: 0} {
		x := evs[i].(ProcessExited)
		if got := x.Started; want == 0 && got != nil || want != 0 && (got == nil || got.PID != want) {
			t.Errorf("exit %d goes with the start %+v, want that of %d", i, got, want)
		}
	}
}

func TestHostClockGoesForward(t *testing.T) {
	t.Parallel()
	a := hostInstant()
	b := hostInstant()
	if a.Boot <= 0 || b.Boot < a.Boot || time.Since(b.Wall) > time.Minute {
		t.Errorf("%+v %+v", a, b)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Errorf("%q %v", id, err)
	}
}
