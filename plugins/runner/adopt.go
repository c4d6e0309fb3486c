package runner

import (
	"errors"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Waits for the kernel to tell how an adopted process ended: whoever reaps it
// has to do that first.
const (
	statusWait = 5 * time.Second
	statusLook = time.Millisecond
)

// adopt watches a process of a plugin that is gone (P7). The worker watches it,
// too; this process does it while there is no worker, and holds the pipes.
func (s *Server) adopt(p *runnerv1.Adopt) {
	id := p.GetId()
	started := &runnerv1.Started{Id: id, Pid: p.GetPid(), StartTicks: p.GetStartTicks(), Time: timestamppb.Now()}
	s.mu.Lock()
	if s.closed || s.known(id) {
		s.mu.Unlock()
		return
	}
	a := &attempt{lanes: [2]int{-1, -1}}
	s.attempts[id] = a
	s.mu.Unlock()
	if err := a.openLanes(p.GetStdout(), p.GetStderr(), foreign.Anybody); err != nil {
		s.log.Warn("pipes of an adopted process not held", "id", id, "error", err)
	}
	s.began(a, started)
	fd, err := pidfd.Open(int(p.GetPid()), p.GetStartTicks())
	if err == nil {
		// Not blocking, so that Go's poller waits and not a thread.
		err = syscall.SetNonblock(fd, true)
	}
	if err != nil {
		s.finish(a, &runnerv1.Exited{Id: id, Pid: p.GetPid(), Time: timestamppb.Now(), Adopted: true})
		return
	}
	f := os.NewFile(uintptr(fd), "process of "+id)
	s.mu.Lock()
	s.watched[f] = struct{}{}
	s.mu.Unlock()
	s.wait.Go(func() { s.watch(a, f, fd, started) })
}

// known repeats what is known of an id; s.mu is held.
func (s *Server) known(id string) bool {
	if a, ok := s.attempts[id]; ok {
		s.repeat(a)
		return true
	}
	e, ok := s.recent[id]
	if ok && s.session != nil {
		s.session.exited(e)
	}
	return ok
}

// watch waits for the end of an adopted process, or of the server.
func (s *Server) watch(a *attempt, f *os.File, fd int, p *runnerv1.Started) {
	defer func() {
		s.mu.Lock()
		delete(s.watched, f)
		s.mu.Unlock()
		_ = f.Close()
	}()
	conn, err := f.SyscallConn()
	if err != nil {
		return // closed meanwhile
	}
	if err := conn.Read(func(fd uintptr) bool { return pidfd.Exited(int(fd)) }); err != nil {
		return // the server ends
	}
	e := &runnerv1.Exited{Id: p.GetId(), Pid: p.GetPid(), Time: timestamppb.Now(), Adopted: true}
	status, err := s.status(fd, p)
	switch {
	case errors.Is(err, os.ErrClosed):
		return
	case err != nil:
		s.log.Warn("nobody tells how an adopted process ended", "id", p.GetId(), "error", err)
	case status.Signaled():
		e.Result = &runnerv1.Exited_Signal{Signal: int32(status.Signal())}
	default:
		e.Result = &runnerv1.Exited_ExitCode{ExitCode: int32(status.ExitStatus())}
	}
	s.finish(a, e)
}

// status asks until somebody tells, or it has taken too long.
func (s *Server) status(fd int, p *runnerv1.Started) (syscall.WaitStatus, error) {
	for end := time.Now().Add(statusWait); ; {
		status, err := pidfd.Status(fd, int(p.GetPid()), p.GetStartTicks())
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return status, err
		}
		select {
		case <-s.ending:
			return 0, os.ErrClosed
		case <-time.After(statusLook):
		}
	}
}
