package peers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// privsep is a folder that sshd wants when root starts it; Debian's unit makes
// it at every start.
const privsep = "/run/sshd"

// SSH is an sshd of its own on 127.0.0.1 with keys that exist only for the
// measurement, and a master connection to it.
type SSH struct {
	dir    string
	port   int
	user   string
	server *daemon
	master *daemon
	made   bool // privsep
}

// sshAtOnce is how many ssh processes run at once: more bring nothing on a
// small machine.
const sshAtOnce = 8

// StartSSH starts the server and the master connection.
func StartSSH(ctx context.Context, dir string) (s *SSH, err error) {
	s = &SSH{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	me, err := user.Current()
	if err != nil {
		return s, fmt.Errorf("find who we are: %w", err)
	}
	s.user = me.Username
	if s.port, err = freePort(); err != nil {
		return s, err
	}
	for _, key := range []string{"host", "client"} {
		if err := run(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", s.file(key))); err != nil {
			return s, err
		}
	}
	if err := s.configure(); err != nil {
		return s, err
	}
	if os.Getuid() == 0 {
		err := os.Mkdir(privsep, 0o755)
		s.made = err == nil
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return s, fmt.Errorf("make the folder that sshd wants: %w", err)
		}
	}
	if s.server, err = startDaemon(s.file("sshd.log"), "sshd", "-D", "-e", "-f", s.file("sshd_config")); err != nil {
		return s, err
	}
	if err := s.server.await(ctx, func() bool { return listens(s.port) }); err != nil {
		return s, err
	}
	if s.master, err = startDaemon(s.file("ssh.log"), "ssh", append([]string{"-M", "-N"}, s.options()...)...); err != nil {
		return s, err
	}
	return s, s.master.await(ctx, func() bool {
		return exec.CommandContext(ctx, "ssh", append([]string{"-O", "check"}, s.options()...)...).Run() == nil
	})
}

func (s *SSH) file(name string) string { return filepath.Join(s.dir, name) }

// configure writes the server's configuration and who may come in.
func (s *SSH) configure() error {
	public, err := os.ReadFile(s.file("client.pub"))
	if err != nil {
		return fmt.Errorf("read the throw-away key: %w", err)
	}
	host, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		return fmt.Errorf("read the throw-away key: %w", err)
	}
	for name, text := range map[string]string{
		"authorized_keys": string(public),
		"known_hosts":     fmt.Sprintf("[127.0.0.1]:%d %s", s.port, host),
		"sshd_config": strings.Join([]string{
			"Port " + strconv.Itoa(s.port), "ListenAddress 127.0.0.1", "HostKey " + s.file("host"), "PidFile none",
			"AuthorizedKeysFile " + s.file("authorized_keys"), "StrictModes no", "UsePAM no", "PasswordAuthentication no",
			"KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "MaxSessions 1000", "MaxStartups 1000",
			// A bash that sshd starts reads ~/.bashrc, unless it is told that another
			// shell has: how long that takes is not what is measured.
			"SetEnv SHLVL=1", "LogLevel ERROR", "",
		}, "\n"),
	} {
		if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("configure sshd: %w", err)
		}
	}
	return nil
}

func (s *SSH) options() []string {
	return []string{
		"-F", "none", "-S", s.file("control"), "-i", s.file("client"), "-p", strconv.Itoa(s.port), "-o", "BatchMode=yes",
		"-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + s.file("known_hosts"), "-o", "LogLevel=ERROR", s.user + "@127.0.0.1",
	}
}

// Command is one run of a command through the master connection. The remote
// side runs it by a shell, as ssh always does.
func (s *SSH) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ssh", append(append(s.options(), "--"), quoted(argv))...)
}

// quoted is a command line for the remote shell.
func quoted(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

// Processes are those that carry what a command prints, by name: the master
// connection's two ends.
func (s *SSH) Processes() (map[string][]int, error) {
	server, err := descendants(s.server.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	return map[string][]int{"sshd": server, "ssh": {s.master.cmd.Process.Pid}}, nil
}

// descendants lists a process and those below it, see proc(5).
func descendants(pid int) ([]int, error) {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", out[i]))
		if err != nil {
			return nil, fmt.Errorf("find the processes of sshd: %w", err)
		}
		for _, field := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("find the processes of sshd: %w", err)
			}
			out = append(out, child)
		}
	}
	return out, nil
}

// Name implements Peer.
func (s *SSH) Name() string { return "ssh" }

// Run implements Peer.
func (s *SSH) Run(ctx context.Context, argv []string, n int) error {
	return share(ctx, n, sshAtOnce, func(ctx context.Context, n int) error {
		for range n {
			if err := run(s.Command(ctx, argv...)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close implements Peer.
func (s *SSH) Close() error {
	if s.master != nil {
		s.master.stop()
	}
	if s.server != nil {
		s.server.stop()
	}
	if s.made {
		return os.Remove(privsep)
	}
	return nil
}
