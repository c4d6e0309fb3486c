package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
)

// slurm is a cluster of one node with a key of its own.
type slurm struct {
	dir     string
	daemons []*daemon
}

// slurmClients is how many srun are under way at once.
const slurmClients = 8

func startSlurm(ctx context.Context, dir string) (Peer, error) {
	s := &slurm{dir: dir}
	if err := s.up(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *slurm) file(name string) string { return filepath.Join(s.dir, name) }

func (s *slurm) up(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the host's name: %w", err)
	}
	host, _, _ = strings.Cut(host, ".")
	if err := s.configure(host); err != nil {
		return err
	}
	key, err := find("mungekey")
	if err != nil {
		return err
	}
	if err := run(exec.CommandContext(ctx, key, "-c", "-k", s.file("munge.key"))); err != nil {
		return err
	}
	// --force: it would not have its files below /tmp.
	munged := []string{
		"munged", "--foreground", "--force", "--key-file", s.file("munge.key"), "--socket", s.file("munge.sock"),
		"--log-file", s.file("munged.log"), "--pid-file", s.file("munged.pid"), "--seed-file", s.file("munged.seed"),
	}
	for _, d := range []struct {
		argv  []string
		ready func() bool
	}{
		{munged, func() bool { _, err := os.Stat(s.file("munge.sock")); return err == nil }},
		{[]string{"slurmctld", "-c", "-D", "-f", s.file("slurm.conf")}, func() bool { return s.says(ctx, "bench") }},
		{[]string{"slurmd", "-D", "-f", s.file("slurm.conf"), "-N", host}, func() bool { return s.says(ctx, "idle") }},
	} {
		started, err := startDaemon(s.file(d.argv[0]+".out"), d.argv[0], d.argv[1:]...)
		if err != nil {
			return err
		}
		s.daemons = append(s.daemons, started)
		if err := started.await(ctx, d.ready); err != nil {
			return err
		}
	}
	return nil
}

// says tells whether the state of the partition has a word.
func (s *slurm) says(ctx context.Context, word string) bool {
	out, err := s.client(ctx, "sinfo", "-h", "-o", "%P %t").Output()
	return err == nil && strings.Contains(string(out), word)
}

func (s *slurm) client(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+s.file("slurm.conf"))
	return cmd
}

func (s *slurm) configure(host string) error {
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("find who we are: %w", err)
	}
	var ports [2]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"state", "spool"} {
		if err := os.Mkdir(s.file(dir), 0o700); err != nil {
			return fmt.Errorf("make a folder for slurm: %w", err)
		}
	}
	// More processors than there are: nothing has to wait for one, which slurm is
	// slow to notice.
	conf := fmt.Sprintf(`ClusterName=bench
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=%[2]d
SlurmdPort=%[3]d
AuthType=auth/munge
AuthInfo=socket=%[4]s/munge.sock
SlurmUser=%[5]s
SlurmdUser=%[5]s
StateSaveLocation=%[4]s/state
SlurmdSpoolDir=%[4]s/spool
SlurmctldPidFile=%[4]s/slurmctld.pid
SlurmdPidFile=%[4]s/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmctldDebug=error
SlurmdDebug=error
MaxJobCount=100000
NodeName=%[1]s NodeAddr=127.0.0.1 CPUs=64 State=UNKNOWN
PartitionName=bench Nodes=%[1]s Default=YES MaxTime=INFINITE State=UP
`, host, ports[0], ports[1], s.dir, me.Username)
	if err := os.WriteFile(s.file("slurm.conf"), []byte(conf), 0o600); err != nil {
		return fmt.Errorf("configure slurm: %w", err)
	}
	return nil
}

// Name implements Peer.
func (s *slurm) Name() string { return "slurm" }

// Run implements Peer.
func (s *slurm) Run(ctx context.Context, argv []string, n int) error {
	return share(ctx, n, slurmClients, func(ctx context.Context, n int) error {
		for range n {
			if err := run(s.client(ctx, append([]string{"srun", "-Q", "-n1"}, argv...)...)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close implements Peer.
func (s *slurm) Close() error {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		s.daemons[i].stop()
	}
	return nil
}
