// Package peers runs the same commands with other programs that this machine
// has, so that drover can be compared with them in the same run.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/errs"
)

// Peer runs commands.
type Peer interface {
	// Name is what it is called with --peer.
	Name() string
	// Run runs a command n times, several at once, and returns when all have ended.
	Run(ctx context.Context, argv []string, n int) error
	// Close ends what the peer needed.
	Close() error
}

// kind is how one peer is found and started.
type kind struct {
	name     string
	packages string   // of Debian
	programs []string // that must be there
	start    func(ctx context.Context, dir string) (Peer, error)
}

func kinds() []kind {
	return []kind{
		{"ssh", "openssh-server openssh-client", []string{"sshd", "ssh", "ssh-keygen"}, func(ctx context.Context, dir string) (Peer, error) {
			s, err := StartSSH(ctx, dir)
			if err != nil {
				return nil, err
			}
			return s, nil
		}},
		{"xargs", "findutils", []string{"xargs"}, startXargs},
		{"parallel", "parallel", []string{"parallel"}, startParallel},
		{"gearman", "gearman-job-server gearman-tools", []string{"gearmand", "gearman"}, startGearman},
		{"slurm", "slurmctld slurmd slurm-client munge", []string{"slurmctld", "slurmd", "srun", "munged", "mungekey"}, startSlurm},
	}
}

// Names lists the peers.
func Names() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, k.name)
	}
	return out
}

// Installed lists the peers whose programs this machine has.
func Installed() []string {
	var out []string
	for _, k := range kinds() {
		if k.missing() == "" {
			out = append(out, k.name)
		}
	}
	return out
}

func (k *kind) missing() string {
	for _, p := range k.programs {
		if _, err := find(p); err != nil {
			return p
		}
	}
	return ""
}

// Check tells what is wrong with a name of --peer: it is none, or the programs
// are not there.
func Check(name string) error {
	const op = "measure peers"
	for _, k := range kinds() {
		if k.name != name {
			continue
		}
		if p := k.missing(); p != "" {
			return errs.E(op, errs.Precondition, "PEER_MISSING", fmt.Errorf("%s is not installed: there is no %s", name, p)).
				WithHint("apt-get install %s", k.packages)
		}
		return nil
	}
	return errs.Field(op, "--peer", "PEER", "%q is none of %s", name, strings.Join(Names(), ", "))
}

// Start starts a peer that keeps its files in dir, which should be empty.
func Start(ctx context.Context, name, dir string) (Peer, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	all := kinds()
	i := slices.IndexFunc(all, func(k kind) bool { return k.name == name })
	p, err := all[i].start(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// find looks also where daemons are, which is not in everybody's PATH.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/usr/local/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", program, exec.ErrNotFound)
}

// run runs a client of a peer; its complaints are in the error.
func run(cmd *exec.Cmd) error {
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, tail(complaints.String()))
	}
	return nil
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-500):]
}

// daemon is a process of a peer.
type daemon struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// startDaemon starts a program that stays, with a log beside the peer's files.
func startDaemon(log string, program string, args ...string) (*daemon, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	d := &daemon{cmd: exec.Command(path, args...), log: f, done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = f, f
	// It must not outlive a measurement that is killed.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.cmd.Start(); err != nil {
		f.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait()
	}()
	return d, nil
}

// stop ends the daemon, its log closed.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	d.log.Close()
}

// await asks again and again until ok, or until the daemon has ended.
func (d *daemon) await(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-d.done:
			return fmt.Errorf("%s ended at once: %s", d.cmd.Path, d.text())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", d.cmd.Path, ctx.Err(), d.text())
		case <-tick.C:
		}
	}
	return nil
}

// startTimeout bounds the start of a peer.
const startTimeout = 20 * time.Second

func (d *daemon) text() string {
	data, err := io.ReadAll(io.NewSectionReader(d.log, 0, 64<<10))
	if err != nil {
		return err.Error()
	}
	return tail(string(data))
}

// freePort returns a port that nobody listens on at this moment. It is none of those
// that the kernel gives to whoever asks for any (ip_local_port_range, see ip(7)):
// another program could have got it before the peer is there.
func freePort() (int, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(12_000))); err == nil {
			return l.Addr().(*net.TCPAddr).Port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a port: %w", err)
}

func listens(port int) bool {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	return err == nil && c.Close() == nil
}

// share runs n jobs by several goroutines; each is told how many are its own.
func share(ctx context.Context, n, goroutines int, f func(ctx context.Context, n int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, goroutines)
	for i := range goroutines {
		own := n / goroutines
		if i < n%goroutines {
			own++
		}
		go func() {
			err := f(ctx, own)
			if err != nil {
				cancel()
			}
			results <- err
		}()
	}
	var all []error
	for range goroutines {
		all = append(all, <-results)
	}
	return errors.Join(all...)
}
