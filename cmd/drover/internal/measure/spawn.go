// Package measure takes drover's speed together with the machine's own limit,
// in turns within one run, so that a noisy machine moves both.
package measure

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Spawner measures the bare limit: fork, exec and wait of one command from
// several goroutines, nothing else.
type Spawner struct {
	Path       string
	Argv       []string
	Goroutines int // 0 is 4, which saturates two cores
}

// Rate starts processes for about d and returns how many ended per second.
func (s Spawner) Rate(ctx context.Context, d time.Duration) (float64, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("open the null device: %w", err)
	}
	defer null.Close()
	attr := attributes(null)
	goroutines := s.Goroutines
	if goroutines == 0 {
		goroutines = 4
	}
	var (
		count atomic.Int64
		wait  sync.WaitGroup
		begin = time.Now()
		errs  = make(chan error, goroutines)
	)
	for range goroutines {
		wait.Go(func() {
			for time.Since(begin) < d && ctx.Err() == nil {
				if err := s.once(attr); err != nil {
					errs <- err
					return
				}
				count.Add(1)
			}
		})
	}
	wait.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(count.Load()) / time.Since(begin).Seconds(), ctx.Err()
	}
}

// Command is the command line for a program that runs it.
func (s Spawner) Command() []string { return append([]string{s.Path}, s.Argv[1:]...) }

// Once starts one process and waits for it.
func (s Spawner) Once() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the null device: %w", err)
	}
	defer null.Close()
	return s.once(attributes(null))
}

func attributes(null *os.File) *syscall.ProcAttr {
	return &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
}

func (s Spawner) once(attr *syscall.ProcAttr) error {
	pid, err := syscall.ForkExec(s.Path, s.Argv, attr)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Path, err)
	}
	var status syscall.WaitStatus
	for {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w", s.Path, err)
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("%s ended with %v", s.Path, status)
	}
	return nil
}

// Workload is what a job does, in its bare form and as a drover job.
type Workload struct {
	Name    string // "true" or "bash"
	Bare    Spawner
	Command string
	Path    string // script for drover; "" runs Command itself
}

// Workloads makes the two standard ones; the bash script is written into dir.
// remote is the name under which drover knows the same script.
func Workloads(dir, remote string) ([]Workload, error) {
	truePath, err := exec.LookPath("true")
	if err != nil {
		return nil, fmt.Errorf("find true: %w", err)
	}
	bashPath, err := exec.LookPath("bash")
	if err != nil {
		return nil, fmt.Errorf("find bash: %w", err)
	}
	script := filepath.Join(dir, "line.sh")
	if err := os.WriteFile(script, []byte("echo line\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write the bench script: %w", err)
	}
	return []Workload{
		{Name: "true", Bare: Spawner{Path: truePath, Argv: []string{"true"}}, Command: truePath},
		{Name: "bash", Bare: Spawner{Path: bashPath, Argv: []string{"bash", script}}, Command: "bash", Path: remote},
	}, nil
}
