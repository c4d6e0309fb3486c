package pluginhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// canaryTimeout is the default of Config.Canary.
const canaryTimeout = 20 * time.Second

// canaryID is the id of the start. No attempt has it: theirs are of job ids.
const canaryID = "canary"

// errCanary marks the errors of a canary that did not do what it should.
var errCanary = errors.New("its canary failed")

// try starts the canary through a plugin process that no job has seen: the whole
// way from the frame to fork, exec, exit and acknowledgement. Only then are jobs
// given to it (P11). The canary is no attempt: nothing of it is recorded.
func try(ctx context.Context, p *process, limit time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start, err := p.canary()
	if err != nil {
		return fmt.Errorf("prepare the canary: %w", err)
	}
	output, closeLanes, err := canaryLanes(start)
	if err != nil {
		return fmt.Errorf("prepare the canary: %w", err)
	}
	defer closeLanes()
	var began *runnerv1.Started
	defer func() {
		if err != nil && began != nil {
			// The process that tried it will be killed, and this one is not to stay.
			if fd, gone := pidfd.Open(int(began.GetPid()), began.GetStartTicks()); gone == nil {
				_ = syscall.Kill(-int(began.GetPid()), syscall.SIGKILL)
				_ = syscall.Close(fd)
			}
		}
	}()
	stream, err := p.api.Session(ctx)
	if err != nil {
		return fmt.Errorf("%w: open a session: %w", errCanary, err)
	}
	if err := stream.Send(&runnerv1.SessionRequest{Starts: []*runnerv1.Start{start}}); err != nil {
		return fmt.Errorf("%w: %w", errCanary, err)
	}
	for {
		f, err := stream.Recv()
		switch {
		case err != nil && (ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded):
			// The plugin's end of the session knows the limit, too, and may be first.
			return fmt.Errorf("%w: it did not end within %v", errCanary, limit)
		case err != nil:
			return fmt.Errorf("%w: the plugin ended the session: %w", errCanary, err)
		}
		for _, s := range f.GetStarted() {
			if s.GetId() == canaryID {
				began = s
			}
		}
		for _, e := range f.GetExited() {
			if e.GetId() != canaryID {
				continue
			}
			if err := stream.Send(&runnerv1.SessionRequest{Acks: []string{canaryID}}); err != nil {
				return fmt.Errorf("%w: %w", errCanary, err)
			}
			began = nil
			// Its end proves that the acknowledgement has arrived.
			if err := stream.CloseSend(); err != nil {
				return fmt.Errorf("%w: %w", errCanary, err)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			return judgeCanary(e, p.info.GetCanary() != nil, output)
		}
	}
}

// judgeCanary says whether the end of a canary was a good one. A runner that names
// its own must end it with 0. The empty script that others get proves that
// processes are made and their ends seen, whatever the interpreter thinks of it.
func judgeCanary(e *runnerv1.Exited, declared bool, output func() string) error {
	switch r := e.GetResult().(type) {
	case *runnerv1.Exited_ExitCode:
		if r.ExitCode != 0 && declared {
			return fmt.Errorf("%w: it ended with exit code %d%s", errCanary, r.ExitCode, output())
		}
		return nil
	case *runnerv1.Exited_Signal:
		return fmt.Errorf("%w: signal %d ended it%s", errCanary, r.Signal, output())
	case *runnerv1.Exited_Error:
		if r.Error.GetReason() == runner.BadRequest && !declared {
			return nil
		}
		return fmt.Errorf("%w: %s: %s", errCanary, r.Error.GetReason(), r.Error.GetMessage())
	default:
		return fmt.Errorf("%w: nobody saw how it ended", errCanary)
	}
}

// canary is the start that the runner declared, or an empty script for it.
func (p *process) canary() (*runnerv1.Start, error) {
	wanted := p.info.GetCanary()
	if wanted == nil {
		wanted = &runnerv1.Canary{Script: []byte{}}
	}
	start := &runnerv1.Start{
		Id: canaryID, Command: cmp.Or(wanted.GetCommand(), p.Name), Args: wanted.GetArgs(), Workdir: p.Dir,
		Env:    []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.Dir},
		Stdout: filepath.Join(p.Dir, "canary.out"), Stderr: filepath.Join(p.Dir, "canary.err"),
	}
	if name := p.info.GetInterpreter(); name != "" {
		file, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("find its interpreter: %w", err)
		}
		start.Interpreter = file
	}
	if wanted.Script != nil {
		suffix := ""
		if list := p.info.GetExtensions(); len(list) > 0 {
			suffix = filepath.Base(list[0])
		}
		start.Script = filepath.Join(p.Dir, "canary"+suffix)
		if err := os.WriteFile(start.Script, wanted.GetScript(), 0o700); err != nil {
			return nil, err
		}
	}
	return start, nil
}

// canaryLanes makes the pipes. output is what the canary said to stderr last, for
// the message.
func canaryLanes(s *runnerv1.Start) (output func() string, done func(), err error) {
	paths := []string{s.GetStdout(), s.GetStderr()}
	var fds []int
	done = func() {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
		for _, p := range append(paths, s.GetScript()) {
			if p != "" {
				_ = os.Remove(p) // with its folder at the latest
			}
		}
	}
	for _, p := range paths {
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			done()
			return nil, nil, err
		}
		fd, err := syscall.Open(p, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			done()
			return nil, nil, err
		}
		fds = append(fds, fd)
	}
	return func() string {
		buf := make([]byte, 4096)
		n, _ := syscall.Read(fds[1], buf) // what it can say helps, and that is all
		lines := strings.Split(strings.TrimSpace(string(buf[:max(n, 0)])), "\n")
		if last := lines[len(lines)-1]; last != "" {
			return fmt.Sprintf(" and said %.200q", last)
		}
		return ""
	}, done, nil
}
