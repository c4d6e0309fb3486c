package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/plugins/foreign"
)

// Reasons of refusals that core/job has no name for.
const (
	reasonBadRequest = "BAD_REQUEST" // a field that no scheduler should have let through
	reasonWorkdir    = "WORKDIR"     // the working folder cannot be used
	reasonNoSpace    = "RESOURCES"   // the host could not give what every attempt needs
)

// maxStrings bounds arguments and environment together, in bytes: a plugin takes a
// start of twice as much.
const maxStrings = 1 << 20

// lookPatience is how long a file system may take to show a folder.
const lookPatience = 5 * time.Second

// binaryRunner runs executables and interpreters that have no runner.
const binaryRunner = "binary"

// preparer turns orders into launches. It holds no state of attempts; its
// methods are called from many goroutines.
type preparer struct {
	log     *slog.Logger
	worker  string // name, for DROVER_WORKER
	root    bool   // the worker runs as root
	boot    string
	policy  Policy
	scratch string
	base    map[string]string
	folders attemptFolders
	runners Launcher
	scripts Scripts
	groups  Groups
	output  LaneKeeper
	find    func(u *account, path, command string) (string, error) // finder.find
	account func(string) (*account, error)                         // findAccount
	looks   foreign.Looks                                          // at folders that requests name
}

// prepared is what an attempt holds from preparation to cleanup.
type prepared struct {
	intent journal.Intent
	launch Launch
	runner journal.Runner
	group  Group
	pin    *Pin
	oom    uint64 // kills of the group before this attempt

	noNewPrivs bool
	rlimits    []Rlimit
}

// prepare checks the order and takes all it needs; on an error nothing is held.
func (p *preparer) prepare(ctx context.Context, key job.Key, spec *job.Spec) (_ *prepared, err error) {
	if err := p.check(spec); err != nil {
		return nil, err
	}
	u, err := p.user(spec.User)
	if err != nil {
		return nil, err
	}
	program, err := p.resolve(spec, u)
	if err != nil {
		return nil, err
	}
	if spec.Limits != (job.Limits{}) {
		if err := p.groups.Check(spec.Limits); err != nil {
			return nil, wrapRefusal("limits", job.ReasonLimit, err)
		}
	}
	id := attemptID(key)
	h := &prepared{runner: program.runner}
	if err := p.restrict(h, u); err != nil {
		return nil, err
	}
	undo := &undoer{}
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	if err := p.script(h, id, spec, undo); err != nil {
		return nil, err
	}
	if err := p.checkPath(spec, program.executed(h.pin), u); err != nil {
		return nil, err
	}
	workdir, err := p.workdir(h, spec, u)
	if err != nil {
		return nil, err
	}
	lanes, err := p.take(ctx, h, key, spec, u, undo)
	if err != nil {
		return nil, err
	}
	files, err := p.folders.make(id, spec, u)
	if err != nil {
		return nil, wrapRefusal("stdin, secrets and upload", reasonNoSpace, err)
	}
	h.intent = journal.Intent{
		BootID: p.boot, Spec: *spec, Folder: files != (attemptFiles{}), Mark: id,
		Stdout: lanes.Stdout, Stderr: lanes.Stderr, Cgroup: h.group.Name(), Runner: program.runner,
	}
	h.intent.Spec.Stdin, h.intent.Spec.Secrets, h.intent.Spec.Upload = nil, nil, nil
	if h.pin != nil {
		h.intent.Script = h.pin.Script
	}
	if spec.Uploaded() {
		h.intent.Spec.UploadSHA256 = h.pin.Script.SHA256 // the next life knows by it where the script lies
	}
	h.assemble(key, program, workdir, lanes, files.stdin, u)
	h.launch.Env = jobEnviron(p.base, u, spec, ownEnviron(key, p.worker, id, h.source(), files.secrets))
	return h, nil
}

// rebuild makes the launch of an attempt again from its intent, in case its
// plugin never got it. Where that cannot be done the launch is void: a plugin
// refuses it, and with it a first one that may still be on its way.
func (p *preparer) rebuild(r Holding, x *holding) *prepared {
	in := r.Intent
	h := &prepared{runner: in.Runner, group: x.group, pin: x.pin, intent: in, launch: Launch{ID: r.Held.ID}}
	u, err := p.user(in.Spec.User)
	if err != nil {
		return h
	}
	program, err := p.resolve(&in.Spec, u)
	if err != nil || in.Script.Name != "" && x.pin == nil {
		return h
	}
	if err := p.restrict(h, u); err != nil {
		return h
	}
	workdir, err := p.workdir(h, &in.Spec, u)
	if err != nil {
		return h
	}
	files := p.folders.existing(r.Held.ID)
	h.assemble(r.Key, program, workdir, Lanes{in.Stdout, in.Stderr}, files.stdin, u)
	h.launch.Env = jobEnviron(p.base, u, &in.Spec, ownEnviron(r.Key, p.worker, in.Mark, h.source(), files.secrets))
	return h
}

// assemble fills the launch with what is known of the attempt.
func (h *prepared) assemble(key job.Key, program program, workdir string, lanes Lanes, stdin string, u *account) {
	h.launch = Launch{
		ID: attemptID(key), Command: program.command, Interpreter: program.interpreter, Args: h.intent.Spec.Args, Workdir: workdir, Asked: h.intent.Spec.Workdir != "", Stdin: stdin, Lanes: lanes,
		Cgroup: h.group.Dir(), CgroupTasks: h.group.Tasks(),
		NoNewPrivs: h.noNewPrivs, Rlimits: h.rlimits,
	}
	if h.pin != nil {
		h.launch.Script = h.pin.Path
	}
	if u != nil {
		h.launch.User = &u.cred
	}
}

// source is where the script came from; "" without one.
func (h *prepared) source() string {
	if h.pin == nil {
		return ""
	}
	return h.pin.Source
}

// undoer gives back in reverse what was taken.
type undoer struct{ steps []func() }

func (u *undoer) add(f func()) { u.steps = append(u.steps, f) }

func (u *undoer) run() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
}

// check looks at what the order says by itself. The scheduler has looked, too,
// but the worker's own calls are open to others, and it trusts no scheduler.
func (p *preparer) check(s *job.Spec) error {
	size := 0
	for _, a := range s.Args {
		size += len(a)
	}
	for name, value := range s.Env {
		size += len(name) + len(value)
	}
	if size > maxStrings {
		return refuse("args", reasonBadRequest, "arguments and environment hold %d bytes, %d are allowed", size, maxStrings)
	}
	for i, a := range s.Args {
		if strings.Contains(a, "\x00") {
			return refuse(fmt.Sprintf("args[%d]", i), reasonBadRequest, "holds a NUL byte")
		}
	}
	for name, value := range s.Env {
		field := fmt.Sprintf("env[%q]", name)
		if why, hint := p.policy.RefusesEnv(name, value); why != "" {
			return refuse(field, job.ReasonPolicy, "%s", why).WithHint("%s", hint)
		}
		if strings.Contains(value, "\x00") {
			return refuse(field, reasonBadRequest, "holds a NUL byte")
		}
	}
	for name := range s.Secrets {
		if !fileName(name) {
			return refuse("secrets", reasonBadRequest, "%q cannot be a file name", name)
		}
	}
	if len(s.Stdin) > job.MaxStdin {
		return refuse("stdin", reasonBadRequest, "holds %d bytes, %d are allowed", len(s.Stdin), job.MaxStdin)
	}
	if err := p.checkUpload(s); err != nil {
		return err
	}
	if strings.Contains(s.Command, "\x00") || strings.Contains(s.Workdir, "\x00") {
		return refuse("command", reasonBadRequest, "holds a NUL byte")
	}
	return nil
}

// checkUpload refuses a script that came with the order unless the policy takes
// such, and one that is not the one that was accepted.
func (p *preparer) checkUpload(s *job.Spec) error {
	switch {
	case !s.Uploaded():
		return nil
	case !p.policy.Uploads:
		return refuse("upload", job.ReasonPolicy, "the worker's policy takes no scripts that are sent with a request").
			WithHint(`set "uploads: true" in the worker's policy file`)
	case len(s.Upload) == 0 || len(s.Upload) > job.MaxUpload:
		return refuse("upload", reasonBadRequest, "holds %d bytes, 1 to %d are allowed", len(s.Upload), job.MaxUpload)
	case s.UploadSHA256 != "" && job.SHA256(s.Upload) != s.UploadSHA256:
		return refuse("upload", reasonBadRequest, "is not what was accepted: its sha256 is another")
	case !fileName(s.Path):
		return refuse("path", job.ReasonPath, "%q is no plain name for a script that is sent with a request", s.Path)
	}
	return nil
}

// program is what a request comes to: a runner, the command it gets, and where its
// interpreter lies.
type program struct {
	runner      journal.Runner
	command     string
	interpreter string // "" when the runner names none
}

// executed returns the file that the kernel executes.
func (r *program) executed(pin *Pin) string {
	switch {
	case r.interpreter != "":
		return r.interpreter
	case filepath.IsAbs(r.command):
		return r.command
	case pin != nil:
		return pin.Path
	default:
		return ""
	}
}

// checkPath refuses a PATH of a request for a program whose first line has its own
// interpreter looked up in PATH, as that of many wrappers does: #!/usr/bin/env bash.
func (p *preparer) checkPath(s *job.Spec, file string, u *account) error {
	if _, ok := s.Env["PATH"]; !ok || file == "" {
		return nil
	}
	begins := make(chan []byte, 1)
	err := p.looks.Do(u.user(), lookPatience, func() error {
		line, err := foreign.Beginning(file, 256) // as much as the kernel looks at, see execve(2)
		begins <- line
		return err
	}, nil)
	if err != nil {
		return refuse(`env["PATH"]`, job.ReasonPolicy, "whether it chooses the interpreter of %s cannot be told: %w", file, err)
	}
	first, _, _ := strings.Cut(string(<-begins), "\n")
	fields := strings.Fields(strings.TrimPrefix(first, "#!"))
	if strings.HasPrefix(first, "#!") && len(fields) > 0 && filepath.Base(fields[0]) == "env" {
		return refuse(`env["PATH"]`, job.ReasonPolicy, "it would choose the interpreter of %s, which begins with %q", file, first)
	}
	return nil
}

// resolve finds what runs the request. Every name is looked up in a PATH of the
// worker's choice: the environment of a request must not choose what runs (P13).
func (p *preparer) resolve(s *job.Spec, u *account) (program, error) {
	find := func(command string) (string, error) { return p.find(u, searchPath(p.base, u), command) }
	if s.Path == "" {
		return p.resolveBare(s, find)
	}
	name := s.Command
	if name == "" {
		name = filepath.Ext(s.Path)
		if name == "" {
			return program{}, refuse("command", job.ReasonNoRunner, "is empty, and %q has no extension to choose a runner by", s.Path)
		}
	}
	runner, err := p.runners.Lookup(name)
	switch {
	case err == nil:
		return p.served(s, runner, find)
	case errs.ReasonOf(err) != job.ReasonNoRunner:
		return program{}, wrapRefusal("command", job.ReasonRunnerFailed, err)
	case s.Command == "" || !p.policy.AllowsInterpreter(name, find):
		return program{}, refuse("command", job.ReasonNoRunner, "no runner serves %q, and the worker's policy does not allow it as an interpreter", name).
			WithHint(`see "drover plugin ls", or add it to "interpreters" in the worker's policy file`)
	}
	return p.binary(name, find)
}

// program finds again what runs a request that was prepared before.
func (p *preparer) program(s *job.Spec) (program, error) {
	u, err := p.user(s.User)
	if err != nil {
		return program{}, err
	}
	return p.resolve(s, u)
}

// served finds the interpreter of a runner.
func (p *preparer) served(s *job.Spec, runner journal.Runner, find func(string) (string, error)) (program, error) {
	out := program{runner: runner, command: s.Command}
	name := p.runners.Interpreter(runner)
	if name == "" {
		// Such a runner finds its interpreter by itself, perhaps by the job's PATH.
		if _, ok := s.Env["PATH"]; ok && runner.Name != binaryRunner {
			return program{}, refuse(`env["PATH"]`, job.ReasonPolicy, "the runner %s does not say what its interpreter is, and PATH might choose it", runner.Name)
		}
		return out, nil
	}
	var err error
	if out.interpreter, err = find(name); err != nil {
		return program{}, refuse("command", job.ReasonSpawn, "NOT_FOUND: the interpreter of the runner %s: %v", runner.Name, err)
	}
	return out, nil
}

// resolveBare finds what runs a command without a script (P13).
func (p *preparer) resolveBare(s *job.Spec, find func(string) (string, error)) (program, error) {
	if s.Command == "" {
		return program{}, refuse("command", reasonBadRequest, "is empty, and so is path")
	}
	if !p.policy.AllowsCommand(s.Command, find) {
		return program{}, refuse("command", job.ReasonPolicy, "the worker's policy does not allow %q without a script", s.Command).
			WithHint(`add it to "commands" in the worker's policy file`)
	}
	return p.binary(s.Command, find)
}

// binary hands a command to the binary runner, as an absolute path.
func (p *preparer) binary(command string, find func(string) (string, error)) (program, error) {
	if strings.Contains(command, "/") && (!filepath.IsAbs(command) || filepath.Clean(command) != command) {
		return program{}, refuse("command", job.ReasonPath, "%q is neither a name nor a clean absolute path", command)
	}
	runner, err := p.runners.Lookup(binaryRunner)
	if err != nil {
		return program{}, wrapRefusal("command", job.ReasonRunnerFailed, err)
	}
	if filepath.IsAbs(command) {
		return program{runner: runner, command: command}, nil
	}
	file, err := find(command)
	if err != nil {
		return program{}, refuse("command", job.ReasonSpawn, "NOT_FOUND: %v", err)
	}
	return program{runner: runner, command: file}, nil
}

func (p *preparer) script(h *prepared, id string, s *job.Spec, undo *undoer) error {
	switch {
	case s.Path == "":
		return nil
	case s.Uploaded():
		h.pin = p.folders.uploadedPin(id, s.Path, job.SHA256(s.Upload))
		return nil
	}
	pin, err := p.scripts.Pin(s.Path)
	if err != nil {
		return wrapRefusal("path", job.ReasonScriptGone, err)
	}
	h.pin = &pin
	undo.add(pin.Release)
	return nil
}

// workdir is where the job begins. One that the request names is looked at with the
// rights of the job's user, and not for longer than some seconds. What is returned is
// what was compared with the policy, without links: they may be others in a moment.
func (p *preparer) workdir(h *prepared, s *job.Spec, u *account) (string, error) {
	switch {
	case s.Workdir == "" && h.pin != nil:
		return h.pin.Root, nil
	case s.Workdir == "":
		return p.scratch, nil
	case !filepath.IsAbs(s.Workdir) || filepath.Clean(s.Workdir) != s.Workdir:
		return "", refuse("workdir", reasonWorkdir, "%q is not a clean absolute path", s.Workdir)
	case !p.policy.AllowsWorkdir(s.Workdir):
		return "", refuse("workdir", job.ReasonPolicy, "the worker's policy does not allow %q", s.Workdir)
	}
	where := make(chan string, 1)
	err := p.looks.Do(u.user(), lookPatience, func() error {
		real, err := foreign.Folder(s.Workdir)
		where <- real
		return err
	}, nil)
	switch {
	case errors.Is(err, foreign.ErrNoAnswer):
		return "", refuse("workdir", reasonWorkdir, "%q: %w", s.Workdir, err)
	case err != nil:
		return "", refuse("workdir", reasonWorkdir, "%w", err)
	}
	real := <-where
	if !p.policy.AllowsRealWorkdir(real) {
		return "", refuse("workdir", job.ReasonPolicy, "the worker's policy does not allow %q, which is where %q leads", real, s.Workdir)
	}
	return real, nil
}

// take takes lanes and group.
func (p *preparer) take(ctx context.Context, h *prepared, key job.Key, s *job.Spec, u *account, undo *undoer) (Lanes, error) {
	o := outputOptions(s, u)
	lanes, err := p.output.Take(key, o)
	if err != nil {
		return lanes, wrapRefusal("output", reasonNoSpace, err)
	}
	undo.add(func() { p.giveBack(ctx, key) })
	h.group, err = p.groups.Acquire(s.Limits, o.UID)
	if err != nil {
		return lanes, wrapRefusal("limits", reasonNoSpace, err)
	}
	undo.add(func() { _ = h.group.Release() })
	if s.Limits.Memory > 0 {
		// Groups may be used again: only kills from now on are this attempt's.
		if h.oom, err = h.group.OOMKills(); err != nil {
			return lanes, wrapRefusal("limits.memory", job.ReasonLimit, err)
		}
	}
	return lanes, nil
}

// giveBack returns lanes that nobody will write to.
func (p *preparer) giveBack(ctx context.Context, key job.Key) {
	p.output.NoWriter(key)
	patience := time.NewTimer(sealPatience)
	defer patience.Stop()
	select {
	case <-p.output.Drained(key):
	case <-patience.C:
	case <-ctx.Done():
	}
	if _, _, err := p.output.Finish(ctx, key, false); err != nil {
		p.log.Warn("lanes not given back", "job", key.Job, "attempt", key.Attempt, "error", err)
	}
}

func outputOptions(s *job.Spec, u *account) OutputOptions {
	o := OutputOptions{Policy: s.OutputPolicy, Limit: s.OutputLimit, UID: -1, GID: -1}
	if u != nil {
		o.UID, o.GID = int(u.cred.UID), int(u.cred.GID)
	}
	return o
}
