package dev

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/pidfd"
)

// Process is one process of the cluster. Pid and start time together name it
// for as long as the machine is up: a reused pid has another start time.
type Process struct {
	Role       string `json:"role"` // scheduler, worker or plugin
	Name       string `json:"name"`
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
}

// Alive tells whether the process exists and is the one that was meant.
func (p Process) Alive() bool {
	return p.PID > 0 && pidfd.Alive(p.PID, p.StartTicks)
}

// Kill is kill -9.
func (p Process) Kill() error { return p.signal(syscall.SIGKILL) }

// signal ends only the process that was meant: a pidfd is opened first and the
// start time is compared after that, so that a reused pid is never hit.
func (p Process) signal(s syscall.Signal) error {
	found, err := os.FindProcess(p.PID)
	if err != nil {
		return fmt.Errorf("find process %d: %w", p.PID, err)
	}
	defer func() { _ = found.Release() }()
	if !p.Alive() {
		return nil
	}
	if err := found.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s %s: %w", p.Role, p.Name, err)
	}
	return nil
}

// child is a daemon that this process started and therefore waits for.
type child struct {
	Process
	log  string
	done chan struct{} // closed after the process was reaped
}

// spawn starts a daemon in a session of its own, its log appended to a file.
func spawn(role, name, logDir, binary string, args ...string) (*child, error) {
	path := filepath.Join(logDir, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	stat, err := pidfd.ReadStat(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	c := &child{Process{role, name, cmd.Process.Pid, stat.Ticks}, path, make(chan struct{})}
	// The waiter ends with the daemon; when drover itself ends first, the
	// daemon goes on and init takes it over.
	go func() {
		_ = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// tail returns the last lines of the child's log, for the person at the terminal.
func (c *child) tail() string {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// awaitExit polls: the process may be no child of ours, so nothing reports its end.
func awaitExit(p Process, limit time.Duration) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		if !p.Alive() {
			return true
		}
	}
	return !p.Alive()
}
