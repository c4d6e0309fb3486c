// Package cluster starts real drover clusters for tests: the built binaries,
// real certificates, real mutual TLS on 127.0.0.1.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// Patience is how long a condition may take to come true on a loaded machine.
const Patience = 60 * time.Second

// Pauses between two looks at a condition. Most looks are a drover of their own, and
// cost the processes that are waited for the processor.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = 200 * time.Millisecond
)

// Build builds drover and the runner plugins into a folder of its own and
// returns it, with further build tags if any are wanted. Call it once, from
// TestMain.
func Build(tags ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "drover-bin-"); err != nil {
		return "", fmt.Errorf("make the folder of binaries: %w", err)
	}
	return dir, build(dir, "-s -w", tags, "./cmd/...")
}

// BuildVersion builds commands, such as drover and drover-runner-bash, into dir as
// another version: other bytes, and another answer to who they are.
func BuildVersion(dir, version string, commands ...string) error {
	for i, c := range commands {
		commands[i] = "./cmd/" + c
	}
	return build(dir, "-s -w -X main.version="+version, nil, commands...)
}

func build(dir, ldflags string, tags []string, packages ...string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	args := append([]string{"build", "-tags", strings.Join(append(tags, "grpcnotrace"), ","), "-ldflags", ldflags, "-o", dir + "/"}, packages...)
	cmd := exec.Command("go", args...)
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	return nil
}

// Cluster is one scheduler with its workers, below one temporary folder.
type Cluster struct {
	T         testing.TB
	Bin       string // folder of the binaries
	Dir       string
	CA        *certs.CA
	Address   string // of all schedulers
	Scheduler *Daemon

	env     []string   // of the daemons, besides one's own
	revive  bool       // daemons that SIGKILL ends are started again
	files   int        // that daemons may have open; 0: as many as this process
	standby []*Daemon  // further schedulers
	mu      sync.Mutex // guards workers and links
	workers []*Daemon
	links   []*Link
}

// Daemon is one running process of the cluster.
type Daemon struct {
	T    testing.TB
	Name string
	Data string
	Log  string
	args []string
	env  []string
	cmd  *exec.Cmd
	done chan struct{}
}

// New makes certificates and starts a scheduler; flags are added to its own.
// Everything ends with the test, and it is an error if anything is left over.
func New(t testing.TB, bin string, flags ...string) *Cluster {
	t.Helper()
	return start(t, &Cluster{T: t, Bin: bin, Dir: t.TempDir()}, "127.0.0.1:0", flags)
}

// NewBelow is New with all files in a folder of that name.
func NewBelow(t testing.TB, bin, name string) *Cluster {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return start(t, &Cluster{T: t, Bin: bin, Dir: dir}, "127.0.0.1:0", nil)
}

// NewRevived is New for daemons that die by themselves at points of their code:
// one that SIGKILL has ended is started again at once, where it was. env is
// added to the environment of the daemons.
func NewRevived(t testing.TB, bin string, env []string, flags ...string) *Cluster {
	t.Helper()
	return start(t, &Cluster{T: t, Bin: bin, Dir: t.TempDir(), env: env, revive: true}, fixedAddress(t), flags)
}

// NewWithFiles is New for daemons that may have so many files open.
func NewWithFiles(t testing.TB, bin string, files int, flags ...string) *Cluster {
	t.Helper()
	return start(t, &Cluster{T: t, Bin: bin, Dir: t.TempDir(), files: files}, "127.0.0.1:0", flags)
}

// fixedAddress is free now, and not one that the kernel gives to others meanwhile:
// those begin at 32768 (ip(7), ip_local_port_range).
func fixedAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		free, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(12000)))
		if err != nil {
			continue // taken: another
		}
		defer func() { _ = free.Close() }()
		return free.Addr().String()
	}
	t.Fatal("no free address")
	return ""
}

func start(t testing.TB, c *Cluster, listen string, flags []string) *Cluster {
	t.Helper()
	var err error
	if c.CA, err = certs.Init(c.Path("ca"), "test"); err != nil {
		t.Fatal(err)
	}
	c.Issue("scheduler", certs.RoleScheduler)
	c.Issue("admin", certs.RoleAdmin)
	t.Cleanup(c.stop)
	c.StartScheduler(listen, flags...)
	return c
}

// Path joins a path below the cluster's folder.
func (c *Cluster) Path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// Issue makes a certificate folder and returns it.
func (c *Cluster) Issue(name string, role certs.Role) string {
	c.T.Helper()
	dir := c.Path("certs", name)
	if err := c.CA.IssuePair(dir, certs.IssueRequest{Name: name, Role: role, Hosts: []string{"127.0.0.1"}}); err != nil {
		c.T.Fatal(err)
	}
	return dir
}

// StartScheduler starts the scheduler on an address, as after a kill. On the address
// that it had, commands may be running.
func (c *Cluster) StartScheduler(listen string, flags ...string) {
	c.T.Helper()
	data := c.Path("scheduler")
	_ = os.Remove(filepath.Join(data, "address"))
	args := append([]string{
		"scheduler", "--listen", listen, "--data", data, "--certs", c.Path("certs", "scheduler"), "--ca", c.Path("ca"),
	}, flags...)
	c.Scheduler = c.start("scheduler", data, args)
	c.Eventually("the scheduler's address", func() bool {
		b, err := os.ReadFile(filepath.Join(data, "address"))
		address := strings.TrimSpace(string(b))
		if err == nil && address != "" && address != c.Address {
			c.Address = address
		}
		return err == nil && address != ""
	})
}

// Standby starts one more scheduler, for clients and workers that come after, and
// returns it with its address.
func (c *Cluster) Standby(name string, flags ...string) (d *Daemon, address string) {
	c.T.Helper()
	c.Issue(name, certs.RoleScheduler)
	data := c.Path(name)
	d = c.start(name, data, append([]string{
		"scheduler", "--listen", "127.0.0.1:0", "--data", data, "--certs", c.Path("certs", name), "--ca", c.Path("ca"),
	}, flags...))
	c.standby = append(c.standby, d)
	c.Eventually("the address of "+name, func() bool {
		b, err := os.ReadFile(filepath.Join(data, "address"))
		address = strings.TrimSpace(string(b))
		return err == nil && address != ""
	})
	c.Address += "," + address
	return d, address
}

// Plugins makes a plugin folder with the three runners.
func (c *Cluster) Plugins(dir string) string {
	c.T.Helper()
	for _, p := range []string{"bash", "python", "binary"} {
		c.Must("plugin", "install", "--dir", dir, filepath.Join(c.Bin, "drover-runner-"+p))
	}
	return dir
}

// Scripts makes a script folder from names and texts.
func (c *Cluster) Scripts(dir string, files map[string]string) string {
	c.T.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.T.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			c.T.Fatal(err)
		}
	}
	return dir
}

// AllowAll is a policy file that allows what a dev cluster allows.
func (c *Cluster) AllowAll() string {
	c.T.Helper()
	path := c.Path("policy.yaml")
	if err := os.WriteFile(path, []byte("commands: [\"*\"]\nenv: [\"*\"]\nuploads: true\nallow_root: true\n"), 0o600); err != nil {
		c.T.Fatal(err)
	}
	return path
}

// Worker starts a worker with the runners and waits until it is ready.
func (c *Cluster) Worker(name, scripts string, flags ...string) *Daemon {
	c.T.Helper()
	c.Issue(name, certs.RoleWorker)
	data := c.Path(name)
	args := append([]string{
		"worker", "--name", name, "--scheduler", c.Address, "--listen", "127.0.0.1:0", "--data", data,
		"--certs", c.Path("certs", name), "--plugins", c.Plugins(c.Path(name + "-plugins")), "--scripts", scripts,
		"--policy", c.AllowAll(), "--drain-timeout", "0s",
	}, flags...)
	w := c.start(name, data, args)
	c.mu.Lock()
	c.workers = append(c.workers, w)
	c.mu.Unlock()
	c.AwaitReady(name)
	return w
}

// AwaitReady waits until a worker is ONLINE with three runners and a script.
func (c *Cluster) AwaitReady(name string) {
	c.T.Helper()
	c.Eventually(name+" is ready", func() bool {
		r := c.Run("workers", "show", name, "-o", "json")
		return r.Code == 0 && strings.Count(r.Stdout, `"ready"`) == 3 &&
			strings.Contains(r.Stdout, `"ONLINE"`) && !strings.Contains(r.Stdout, `"scripts": 0`)
	})
}

func (c *Cluster) start(name, data string, args []string) *Daemon {
	c.T.Helper()
	args = append([]string{filepath.Join(c.Bin, "drover")}, args...)
	if c.files > 0 {
		args = append([]string{"bash", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(c.files)}, args...)
	}
	if c.revive {
		args = append([]string{"bash", "-c", reviver, "reviver"}, args...)
	}
	d := &Daemon{T: c.T, Name: name, Data: data, Log: c.Path(name + ".log"), args: args, env: c.env}
	d.Start()
	return d
}

// Reboot starts the process as on a host that was booted again: in a mount namespace
// of its own, where the kernel seems to have another boot id. To kill what no reboot
// leaves is the caller's. Only root may do that.
func (d *Daemon) Reboot(bootID string) {
	d.T.Helper()
	file := d.Data + ".boot_id"
	if err := os.WriteFile(file, []byte(bootID+"\n"), 0o444); err != nil {
		d.T.Fatal(err)
	}
	const mount = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	if d.args[0] == "unshare" {
		d.args = d.args[7:]
	}
	d.args = append([]string{"unshare", "--mount", "--", "sh", "-c", mount, file}, d.args...)
	d.Start()
}

// reviver runs a command again for as long as SIGKILL ends it (137), and passes
// SIGTERM on. A trap interrupts wait, so it waits until the command is gone.
const reviver = `trap 'kill -TERM $child' TERM
while :; do
  "$@" & child=$!
  while :; do wait $child; code=$?; kill -0 $child 2>/dev/null || break; done
  [ $code = 137 ] || exit $code
done`

// Start starts the process (again).
func (d *Daemon) Start() {
	d.T.Helper()
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.T.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		d.T.Fatal(err)
	}
	done := make(chan struct{})
	d.done = done
	cmd := d.cmd
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
}

// PID is the process's id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Args are the command line of the process.
func (d *Daemon) Args() []string { return d.args }

// Signal sends a signal.
func (d *Daemon) Signal(s syscall.Signal) {
	d.T.Helper()
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.T.Fatal(err)
	}
}

// Kill kills the process and waits for its end.
func (d *Daemon) Kill() {
	d.T.Helper()
	d.Signal(syscall.SIGKILL)
	<-d.done
}

// Terminate asks the process to leave and waits for its end.
func (d *Daemon) Terminate() {
	d.T.Helper()
	d.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(Patience):
		d.T.Errorf("%s does not end; its log:\n%s", d.Name, d.LogText())
		d.Kill()
	}
}

// Alive tells whether the process has not ended.
func (d *Daemon) Alive() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// LogText is what the process has logged.
func (d *Daemon) LogText() string {
	b, _ := os.ReadFile(d.Log)
	return string(b)
}

// stop ends the cluster. Workers that a test killed are started once more: what
// they left running is theirs to end.
func (c *Cluster) stop() {
	for _, l := range c.links {
		l.Heal()
	}
	for _, w := range c.workers {
		if !w.Alive() && strings.Count(w.LogText(), `msg="worker is down"`) < strings.Count(w.LogText(), `msg="worker is up"`) {
			w.Start()
			c.AwaitReady(w.Name)
		}
	}
	for _, w := range c.workers {
		w.Terminate()
	}
	schedulers := c.standby
	if c.Scheduler != nil { // it was started at all
		schedulers = append([]*Daemon{c.Scheduler}, schedulers...)
	}
	for _, s := range schedulers {
		s.Terminate()
	}
	for _, l := range c.links {
		l.Up.close()
		l.Down.close()
	}
	if left := Processes(c.Dir); len(left) > 0 {
		c.T.Errorf("processes left over: %v", left)
	}
	if c.T.Failed() {
		for _, d := range append(c.workers, schedulers...) {
			c.T.Logf("log of %s:\n%s", d.Name, d.LogText())
		}
	}
}

// Processes lists processes whose command line or environment names a path.
func Processes(path string) []string {
	entries, _ := os.ReadDir("/proc")
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		env, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if bytes.Contains(line, []byte(path)) || bytes.Contains(env, []byte(path)) {
			out = append(out, fmt.Sprintf("%d %s", pid, strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return out
}

// Result is what one command line did.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command prepares a drover command line with the admin's certificate.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, "drover"), args...)
	cmd.Env = append(os.Environ(), "DROVER_ADDRESS="+c.Address, "DROVER_CERTS="+c.Path("certs", "admin"), "HOME="+c.Dir, "NO_COLOR=1")
	return cmd
}

// Run runs a drover command line.
func (c *Cluster) Run(args ...string) Result {
	c.T.Helper()
	return c.finish(c.Command(context.Background(), args...))
}

// RunAs runs a drover command line with another certificate folder.
func (c *Cluster) RunAs(certsDir string, args ...string) Result {
	c.T.Helper()
	return c.Run(append([]string{"--certs", certsDir}, args...)...)
}

func (c *Cluster) finish(cmd *exec.Cmd) Result {
	c.T.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.T.Fatal(err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// RunUntil runs a drover command line, and interrupts it, as Ctrl-C does, once it has
// said something to stderr.
func (c *Cluster) RunUntil(said string, args ...string) Result {
	c.T.Helper()
	path := filepath.Join(c.T.TempDir(), "stderr")
	stderr, err := os.Create(path)
	if err != nil {
		c.T.Fatal(err)
	}
	defer stderr.Close()
	var stdout bytes.Buffer
	cmd := c.Command(context.Background(), args...)
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	if err := cmd.Start(); err != nil {
		c.T.Fatal(err)
	}
	text := func() string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its code is in the state
	}()
	c.Eventually("it says "+said, func() bool {
		select {
		case <-ended:
			return true
		default:
			return strings.Contains(text(), said)
		}
	})
	_ = cmd.Process.Signal(syscall.SIGINT) // fails when it has ended
	<-ended
	return Result{stdout.String(), text(), cmd.ProcessState.ExitCode()}
}

// Must runs a command line that succeeds, and returns what it printed.
func (c *Cluster) Must(args ...string) string {
	c.T.Helper()
	r := c.Run(args...)
	if r.Code != 0 {
		c.T.Fatalf("drover %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Eventually waits for a condition that other processes make true.
func (c *Cluster) Eventually(what string, cond func() bool) {
	c.T.Helper()
	pause := firstPause
	for end := time.Now().Add(Patience); time.Now().Before(end); pause = min(2*pause, longestPause) {
		if cond() {
			return
		}
		time.Sleep(pause)
	}
	c.T.Fatalf("never came true: %s", what)
}
