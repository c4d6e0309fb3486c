package main

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// request are the flags that say what is wanted of a job.
type request struct {
	worker string
	labels pairs
	any    bool

	timeout, idleTimeout, queueTimeout duration
	grace, linger                      duration
	cpu                                cpus
	memory                             size
	pids                               uint32

	env      []string
	envFiles []string
	secrets  []string
	stdin    string
	upload   bool
	workdir  string
	user     string

	priority  int32
	retries   uint32
	retryOn   []string
	backoff   duration
	requestID string
	name      string
	detached  bool // children may outlive the main process

	outputPolicy string
	onPartition  string
	outputLimit  size
}

func (r *request) register(e *env, cmd *cobra.Command) {
	r.registerPlacement(e, cmd)
	f := cmd.Flags()
	f.Var(&r.timeout, "timeout", "stop the job after this time (exit code 124)")
	f.Var(&r.idleTimeout, "idle-timeout", "stop the job when it has printed nothing for this time")
	f.Var(&r.queueTimeout, "queue-timeout", "give up when no worker takes the job within this time")
	f.Var(&r.grace, "grace", "time between SIGTERM and SIGKILL at a stop (default 10s)")
	f.Var(&r.linger, "linger", "time that children get after the main process (default 2s)")
	f.Var(&r.cpu, "cpu", "limit of processors, such as 0.5 or 2")
	f.Var(&r.memory, "memory", "limit of memory, such as 512M")
	f.Uint32Var(&r.pids, "pids", 0, "limit of processes and threads")
	f.StringArrayVarP(&r.env, "env", "e", nil, "environment variable `K=V`; K alone takes your own value")
	f.StringArrayVar(&r.envFiles, "env-file", nil, "`file` with lines of K=V")
	f.StringArrayVar(&r.secrets, "secret", nil, "`NAME=@FILE`: a file that only the job sees, below $DROVER_SECRETS")
	f.StringVar(&r.stdin, "stdin", "", "`file` for standard input, - for your own (at most 1 MiB)")
	f.StringVar(&r.workdir, "workdir", "", "working `folder` on the worker (default: that of the script)")
	f.StringVarP(&r.user, "user", "u", "", "user to run as, when the worker's policy allows it")
	f.Int32Var(&r.priority, "priority", 0, "place in the queue, -100 to 100; higher goes first")
	f.Uint32Var(&r.retries, "retries", 0, "further attempts at the most")
	f.StringSliceVar(&r.retryOn, "retry-on", nil, "when to try again: `lost,failure` or exit codes; lost is also rejected (default lost,failure)")
	f.Var(&r.backoff, "retry-backoff", "wait before the first retry, doubled each time (default 1s)")
	f.StringVar(&r.requestID, "request-id", "", "makes the request idempotent: the same `id` gives the same job")
	f.StringVar(&r.name, "name", "", "name of the job for people")
	f.BoolVar(&r.detached, "detach-children", false, "children of the job may outlive it")
	f.StringVar(&r.outputPolicy, "output-policy", "", "what happens to output beyond the limit: ring, keep or fail (default ring)")
	f.Var(&r.outputLimit, "output-limit", "limit per stream that the policy speaks of (default 64 MiB)")
	f.StringVar(&r.onPartition, "on-partition", "", "what becomes of the job when its worker is cut off: keep or stop (default keep)")
	completeFlag(cmd, "on-partition", fixed("keep", "stop"))
	completeFlag(cmd, "retry-on", fixed("lost", "failure"))
	completeFlag(cmd, "output-policy", fixed("ring", "keep", "fail"))
}

func (r *request) registerPlacement(e *env, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&r.worker, "worker", "w", "", "worker to run on, by `id or name`")
	f.VarP(&r.labels, "label", "l", "label that the worker must have; repeatable")
	f.BoolVar(&r.any, "any", false, "run on any worker that can (the default)")
	completeFlag(cmd, "worker", e.completeWorkers)
}

// build makes the request for a command, a script ("" is none) and arguments.
func (r *request) build(e *env, verb, command, script string, args []string) (*droverv1.StartJobRequest, error) {
	if r.any && r.worker != "" {
		return nil, problem.UsageError(verb, "--any and --worker exclude one another")
	}
	if command == "" {
		if command = defaultCommand(script); command == "" {
			return nil, problem.UsageError(verb, "nothing tells what runs %q", script).WithHint("give --command, such as --command bash")
		}
	}
	q := &droverv1.StartJobRequest{
		WorkerId: r.worker, Path: script, Command: command, Args: args, Labels: r.labels, Timeout: r.timeout.proto(),
		IdleTimeout: r.idleTimeout.proto(), QueueTimeout: r.queueTimeout.proto(), Grace: r.grace.proto(),
		Linger: r.linger.proto(), DetachChildren: r.detached, Workdir: r.workdir, User: r.user, Name: r.name,
		Priority: r.priority, OutputLimit: uint64(r.outputLimit), RequestId: r.requestID,
	}
	if r.cpu > 0 || r.memory > 0 || r.pids > 0 {
		q.Limits = &droverv1.Limits{CpuMillis: uint32(r.cpu), MemoryBytes: uint64(r.memory), Pids: r.pids}
	}
	if q.RequestId == "" {
		q.RequestId = uuid.NewString()
	}
	var err error
	if q.OutputPolicy, err = r.policy(verb); err != nil {
		return nil, err
	}
	if q.OnPartition, err = r.partition(verb); err != nil {
		return nil, err
	}
	if q.Retry, err = r.retry(verb); err != nil {
		return nil, err
	}
	if q.Env, err = r.environment(e, verb); err != nil {
		return nil, err
	}
	if q.Secrets, err = readSecrets(e, verb, r.secrets); err != nil {
		return nil, err
	}
	if q.Stdin, err = readStdin(e, r.stdin); err != nil {
		return nil, err
	}
	return q, r.sendScript(e, verb, q)
}

// sendScript puts a file of this machine into the request, in place of the name
// of a script that the worker has.
func (r *request) sendScript(e *env, verb string, q *droverv1.StartJobRequest) error {
	if !r.upload {
		return nil
	}
	if q.GetPath() == "" {
		return problem.UsageError(verb, "--upload needs a SCRIPT of this machine")
	}
	script, err := readBounded(e, "script", q.GetPath())
	if err != nil {
		return err
	}
	if len(script) == 0 {
		return problem.UsageError(verb, "--upload: %q is empty", q.GetPath())
	}
	q.Upload, q.Path = script, filepath.Base(q.GetPath())
	return nil
}

// defaultCommand is the runner of a script that names none.
func defaultCommand(script string) string {
	switch path.Ext(script) {
	case ".sh":
		return "bash"
	case ".py":
		return "python"
	default:
		return ""
	}
}

func (r *request) policy(verb string) (droverv1.OutputPolicy, error) {
	switch r.outputPolicy {
	case "":
		return droverv1.OutputPolicy_OUTPUT_POLICY_UNSPECIFIED, nil
	case "ring":
		return droverv1.OutputPolicy_OUTPUT_POLICY_RING, nil
	case "keep":
		return droverv1.OutputPolicy_OUTPUT_POLICY_KEEP, nil
	case "fail":
		return droverv1.OutputPolicy_OUTPUT_POLICY_FAIL, nil
	default:
		return 0, problem.UsageError(verb, "--output-policy %q is none of ring, keep, fail", r.outputPolicy)
	}
}

// partition reads --on-partition (P4: keep is the default).
func (r *request) partition(verb string) (droverv1.OnPartition, error) {
	switch r.onPartition {
	case "":
		return droverv1.OnPartition_ON_PARTITION_UNSPECIFIED, nil
	case "keep":
		return droverv1.OnPartition_ON_PARTITION_KEEP, nil
	case "stop":
		return droverv1.OnPartition_ON_PARTITION_STOP, nil
	default:
		return 0, problem.UsageError(verb, "--on-partition %q is neither keep nor stop", r.onPartition)
	}
}

// retry reads --retries and --retry-on (P5: never is the default).
func (r *request) retry(verb string) (*droverv1.RetryPolicy, error) {
	if r.retries == 0 {
		if len(r.retryOn) > 0 || r.backoff.given {
			return nil, problem.UsageError(verb, "--retry-on and --retry-backoff need --retries")
		}
		return nil, nil
	}
	p := &droverv1.RetryPolicy{MaxRetries: r.retries, Backoff: r.backoff.proto()}
	p.OnLost, p.OnFailure = len(r.retryOn) == 0, len(r.retryOn) == 0
	for _, when := range r.retryOn {
		code, err := strconv.ParseUint(when, 10, 8)
		switch {
		case when == "lost":
			p.OnLost = true
		case when == "failure":
			p.OnFailure = true
		case err == nil && code > 0:
			p.ExitCodes = append(p.ExitCodes, int32(code))
		default:
			return nil, problem.UsageError(verb, "--retry-on %q is neither lost, failure nor an exit code from 1 to 255", when)
		}
	}
	if len(p.ExitCodes) > 0 {
		if slices.Contains(r.retryOn, "failure") {
			return nil, problem.UsageError(verb, "--retry-on takes failure (any code) or exit codes, not both")
		}
		p.OnFailure = true
	}
	return p, nil
}

// environment reads files first, so that a flag wins over a file.
func (r *request) environment(e *env, verb string) (map[string]string, error) {
	all := map[string]string{}
	for _, name := range r.envFiles {
		if err := readEnvFile(e, verb, name, all); err != nil {
			return nil, err
		}
	}
	for _, pair := range r.env {
		if err := setEnv(e, verb, pair, all); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// setEnv takes K=V, or K for the caller's own value.
func setEnv(e *env, verb, pair string, all map[string]string) error {
	k, v, ok := strings.Cut(pair, "=")
	switch {
	case k == "":
		return problem.UsageError(verb, "%q is not an environment variable as K=V", pair)
	case !utf8.ValidString(pair):
		return problem.UsageError(verb, "the environment variable %q is not UTF-8", pair)
	}
	if !ok {
		if v = e.getenv(k); v == "" {
			return nil // as docker: what is not set here is not set there
		}
	}
	all[k] = v
	return nil
}

// readEnvFile reads lines of K=V; empty lines and those that begin with # do
// not count.
func readEnvFile(e *env, verb, name string, all map[string]string) error {
	f, err := e.file(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := setEnv(e, verb, line, all); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return errs.E("read "+name, errs.Invalid, "FILE", err)
	}
	return nil
}

// readSecrets reads NAME=@FILE. Values never come from the command line, where
// others could see them.
func readSecrets(e *env, verb string, flags []string) (map[string][]byte, error) {
	var all map[string][]byte
	for _, s := range flags {
		name, file, ok := strings.Cut(s, "=@")
		if !ok || name == "" || file == "" {
			return nil, problem.UsageError(verb, "a secret is NAME=@FILE; its value is never given on the command line")
		}
		data, err := readBounded(e, "secret "+name, file)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = map[string][]byte{}
		}
		all[name] = data
	}
	return all, nil
}

func readStdin(e *env, name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	return readBounded(e, "standard input", name)
}

// readBounded reads what a request may carry.
func readBounded(e *env, what, name string) ([]byte, error) {
	f, err := e.file(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, job.MaxStdin+1))
	if err != nil {
		return nil, errs.E("read "+what, errs.Invalid, "FILE", err)
	}
	if len(data) > job.MaxStdin {
		return nil, errs.E("read "+what, errs.Invalid, "TOO_LONG", fmt.Errorf("%s has more than 1 MiB", name)).
			WithHint("put larger input where the worker can read it")
	}
	return data, nil
}
