package scheduler

import (
	"path"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Bounds of a request.
const (
	maxArgs      = 4096        // and as many variables
	maxString    = 128<<10 - 1 // of an argument or NAME=VALUE: MAX_ARG_STRLEN without the NUL
	maxBytes     = 1 << 20     // arguments and environment together, below the kernel's ARG_MAX
	perString    = 9           // what the kernel counts besides: the NUL and a pointer (execve(2))
	maxLabels    = 64
	maxName      = 128
	maxRequestID = 128
	maxExitCodes = 256
	maxReason    = 1 << 10 // of a drain
	maxStates    = 16      // to select by; there are fewer
	maxRemoved   = 1000    // jobs that one request removes
	maxPriority  = 100
	maxRetries   = 1000
	minMemory    = 1 << 20 // with less a shell does not come to life: the kernel refuses its fork, or kills it
	maxPids      = 1 << 22 // PID_MAX_LIMIT; the kernel refuses a higher pids.max
)

var (
	labelPattern = pattern(`^[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,126}[a-zA-Z0-9])?$`)
	envPattern   = pattern(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// pattern is compiled when it is first asked for: the command line is the same
// program, and it is started anew for each job.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

func invalid(field, reason, format string, args ...any) error {
	return errs.Field(opSubmit, field, reason, format, args...)
}

// validate refuses a request that cannot be right anywhere, naming the field.
// Nothing is accepted, stored or started when it does.
func validate(s *job.Spec, requestID string) error {
	if s.Command == "" && s.Path == "" {
		return invalid("command", "COMMAND_MISSING", "command and path are both empty")
	}
	if s.Command == "" && defaultCommand(s.Path) == "" {
		return invalid("command", "COMMAND_MISSING", "it is empty and %q has no extension that tells the runner (.sh, .py)", s.Path)
	}
	checks := []error{
		checkTexts(s), checkPath(s.Path), checkArgs(s), checkEnv(s), checkSecrets(s.Secrets), checkLabels(s.Labels),
		checkDurations(s), checkLimits(s.Limits), checkUpload(s),
	}
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	switch {
	case s.Workdir != "" && !path.IsAbs(s.Workdir):
		return invalid("workdir", "WORKDIR", "%q is not absolute", s.Workdir)
	case len(requestID) > maxRequestID:
		return tooLong("request_id", len(requestID), maxRequestID)
	case len(s.Stdin) > job.MaxStdin:
		return tooLong("stdin", len(s.Stdin), job.MaxStdin)
	case s.Priority < -maxPriority || s.Priority > maxPriority:
		return invalid("priority", "OUT_OF_RANGE", "%d is not between -%d and %d", s.Priority, maxPriority, maxPriority)
	case s.Retry.Max > maxRetries:
		return invalid("retry", "OUT_OF_RANGE", "%d retries, at most %d", s.Retry.Max, maxRetries)
	case len(s.Retry.ExitCodes) > maxExitCodes:
		return invalid("retry.exit_codes", "TOO_MANY", "%d exit codes, at most %d", len(s.Retry.ExitCodes), maxExitCodes)
	}
	return checkPartition(s)
}

// checkTexts refuses texts that are no texts, or too long.
func checkTexts(s *job.Spec) error {
	for _, t := range []struct {
		field, value string
		most         int
	}{
		{"worker_id", s.Worker, job.MaxName},
		{"command", s.Command, job.MaxPath},
		{"workdir", s.Workdir, job.MaxPath},
		{"user", s.User, job.MaxName},
		{"name", s.Name, maxName},
	} {
		if len(t.value) > t.most {
			return tooLong(t.field, len(t.value), t.most)
		}
		if err := text(t.field, t.value); err != nil {
			return err
		}
	}
	return nil
}

func tooLong(field string, size, most int) error {
	return invalid(field, "TOO_LONG", "it has %d bytes, at most %d", size, most)
}

func text(field, s string) error {
	if strings.ContainsRune(s, 0) {
		return invalid(field, "NUL", "it holds a NUL byte")
	}
	if !utf8.ValidString(s) {
		return invalid(field, "NOT_UTF8", "it is not valid UTF-8")
	}
	return nil
}

// checkPath refuses what can never name a script; whether it does is the
// worker's to say, on the file system (P13).
func checkPath(p string) error {
	if p == "" {
		return nil
	}
	switch {
	case len(p) > job.MaxPath:
		return invalid("path", "PATH_REFUSED", "it has %d bytes, at most %d", len(p), job.MaxPath)
	case strings.ContainsRune(p, 0):
		return invalid("path", "PATH_REFUSED", "it holds a NUL byte")
	}
	why := ""
	switch {
	case path.IsAbs(p):
		why = "is absolute; paths are relative to a script folder"
	case strings.HasSuffix(p, "/"):
		why = "ends with a slash; it must name a file"
	}
	for seg := range strings.SplitSeq(p, "/") {
		switch {
		case why != "":
		case seg == "..":
			why = "leads out of the script folder with .."
		case seg == "" || seg == ".":
			why = "has an empty segment or a dot segment"
		}
	}
	if why != "" {
		return invalid("path", "PATH_REFUSED", "%q %s", p, why)
	}
	return text("path", p)
}

// checkUpload refuses a script that is too long to carry, or that has no plain
// name: the worker makes a file of that name.
func checkUpload(s *job.Spec) error {
	switch {
	case len(s.Upload) == 0:
		return nil
	case len(s.Upload) > job.MaxUpload:
		return tooLong("upload", len(s.Upload), job.MaxUpload)
	case s.Path == "" || strings.Contains(s.Path, "/") || len(s.Path) > job.MaxName:
		return invalid("path", "PATH_REFUSED", "%q is no plain name for a script that is sent with the request", s.Path)
	}
	return nil
}

func checkArgs(s *job.Spec) error {
	if len(s.Args) > maxArgs {
		return invalid("args", "TOO_MANY", "%d arguments, at most %d", len(s.Args), maxArgs)
	}
	size := 0
	for i, a := range s.Args {
		if err := text("args", a); err != nil {
			return err
		}
		if len(a) > maxString {
			return invalid("args", "TOO_LONG", "argument %d has %d bytes, at most %d", i+1, len(a), maxString)
		}
		size += len(a) + perString
	}
	for k, v := range s.Env {
		size += len(k) + len("=") + len(v) + perString
	}
	if size > maxBytes {
		return invalid("args", "TOO_LONG", "arguments and environment have %d bytes, at most %d", size, maxBytes)
	}
	return nil
}

// checkEnv looks at the form of names only: which of them a job may have is what
// the policy of its worker says.
func checkEnv(s *job.Spec) error {
	if len(s.Env) > maxArgs {
		return invalid("env", "TOO_MANY", "%d variables, at most %d", len(s.Env), maxArgs)
	}
	for k, v := range s.Env {
		if n := len(k) + len("=") + len(v); n > maxString {
			return invalid("env", "TOO_LONG", "%s has %d bytes, at most %d", job.Shorten(k, maxName), n, maxString)
		}
		if !envPattern().MatchString(k) {
			return invalid("env", "ENV_NAME", "%q is not a name of letters, digits and underscores", k)
		}
		if err := text("env", v); err != nil {
			return err
		}
	}
	return nil
}

// checkSecrets refuses secrets that cannot be files, or are more than a few keys.
func checkSecrets(secrets map[string][]byte) error {
	if len(secrets) > job.MaxSecrets {
		return invalid("secrets", "TOO_MANY", "%d secrets, at most %d", len(secrets), job.MaxSecrets)
	}
	size := 0
	for name, value := range secrets {
		switch {
		case len(name) > job.MaxName:
			return invalid("secrets", "SECRET_NAME", "a name has %d bytes, at most %d", len(name), job.MaxName)
		case !envPattern().MatchString(name):
			return invalid("secrets", "SECRET_NAME", "%q is not a name of letters, digits and underscores", name)
		}
		size += len(name) + len(value)
	}
	if size > job.MaxSecretBytes {
		return invalid("secrets", "TOO_LONG", "they have %d bytes together, at most %d", size, job.MaxSecretBytes)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return invalid("labels", "TOO_MANY", "%d labels, at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if !labelPattern().MatchString(k) || v != "" && !labelPattern().MatchString(v) {
			return invalid("labels", "LABEL", "%q=%q is not made of letters, digits, dots, dashes, slashes, underscores", k, v)
		}
	}
	return nil
}

// checkLimits refuses limits that no host can keep or no process can start
// with. Zero is no limit; the least of processors, 0.001, is the field's unit.
func checkLimits(l job.Limits) error {
	switch {
	case l.Memory > 0 && l.Memory < minMemory:
		return invalid("limits.memory_bytes", "OUT_OF_RANGE", "%d bytes are too few to start a process, at least %d (1 MiB)", l.Memory, minMemory)
	case l.Pids > maxPids:
		return invalid("limits.pids", "OUT_OF_RANGE", "%d processes, at most %d", l.Pids, maxPids)
	}
	return nil
}

// checkPartition bounds what the scheduler may have to wait for (P4 c).
func checkPartition(s *job.Spec) error {
	if s.OnPartition == job.StopItself && s.Grace > job.MaxPartitionGrace {
		return invalid("grace", "OUT_OF_RANGE", "%v is more than %v, the most with on_partition=stop", s.Grace, job.MaxPartitionGrace)
	}
	return nil
}

func checkDurations(s *job.Spec) error {
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"timeout", s.Timeout},
		{"idle_timeout", s.IdleTimeout},
		{"queue_timeout", s.QueueTimeout},
		{"grace", s.Grace},
		{"linger", s.Linger},
		{"retry", s.Retry.Backoff},
	} {
		if d.value < 0 {
			return invalid(d.field, "NEGATIVE", "%v is negative", d.value)
		}
	}
	return nil
}

// check bounds what a list is selected by: each of it is looked at for each job.
func (q *JobQuery) check(op string) error {
	switch {
	case len(q.States) > maxStates:
		return errs.Field(op, "states", "TOO_MANY", "%d states, at most %d", len(q.States), maxStates)
	case len(q.Worker) > job.MaxName:
		return errs.Field(op, "worker_id", "TOO_LONG", "it has %d bytes, at most %d", len(q.Worker), job.MaxName)
	}
	return checkSelector(op, q.Labels)
}

func checkSelector(op string, labels map[string]string) error {
	if len(labels) > maxLabels {
		return errs.Field(op, "labels", "TOO_MANY", "%d labels, at most %d", len(labels), maxLabels)
	}
	return nil
}

// checkRegistration refuses a worker that tells more of itself than anybody could
// list. What it tells from time to time is shortened instead: a heartbeat counts.
func checkRegistration(r *registry.Registration) error {
	const op = "register worker"
	for _, t := range []struct{ field, value string }{
		{"address", r.Address}, {"boot_id", r.BootID}, {"instance_id", r.InstanceID}, {"version", r.Version},
	} {
		if len(t.value) > job.MaxName {
			return errs.Field(op, t.field, "TOO_LONG", "it has %d bytes, at most %d", len(t.value), job.MaxName)
		}
	}
	if err := job.CheckCommands(r.Commands); err != nil {
		return errs.Field(op, "commands", "TOO_LONG", "%w", err)
	}
	return checkLabels(r.Labels)
}
