package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/plugins/pidfd"
)

// adopter waits for processes whose plugin is gone: one goroutine for all, by
// their pidfds.
type adopter struct {
	emit  func([]Event)
	ended func(id string) // before emit tells the end of an orphan
	poll  int
	wake  int

	mu       sync.Mutex // guards what follows; no descriptor is closed but under it
	byFD     map[int32]*orphan
	closed   bool
	settling sync.WaitGroup // of processes that cannot be waited for
}

// orphan is a job without its plugin.
type orphan struct {
	id     string
	pid    int
	ticks  uint64
	plugin string
	fd     int
}

// reapWait bounds how long the kernel is asked for the result of a process
// that somebody else reaps.
const reapWait = time.Second

func newAdopter(emit func([]Event), ended func(id string)) (*adopter, error) {
	a := &adopter{emit: emit, ended: ended, byFD: map[int32]*orphan{}}
	var err error
	if a.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make the adopter: %w", err)
	}
	if a.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make the adopter: %w", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(a.wake)}
	if err := unix.EpollCtl(a.poll, unix.EPOLL_CTL_ADD, a.wake, &event); err != nil {
		return nil, fmt.Errorf("make the adopter: %w", err)
	}
	return a, nil
}

// adopt begins to wait for a process. One that is gone already, without a
// result, is proved lost. fd is a handle to it that becomes the adopter's, or -1.
// Once the adopter has ended nothing is told: the next worker looks again.
func (a *adopter) adopt(plugin, id string, pid int, ticks uint64, fd int) {
	if fd < 0 {
		var err error
		if fd, err = pidfd.Open(pid, ticks); err != nil {
			a.ended(id)
			a.emit([]Event{{Plugin: plugin, ID: id, Lost: true}})
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		_ = unix.Close(fd)
		return
	}
	o := &orphan{id: id, pid: pid, ticks: ticks, plugin: plugin, fd: fd}
	a.byFD[int32(fd)] = o
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(a.poll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		a.settling.Go(func() { a.settle(o) })
	}
}

// signal signals an adopted process; false when it is not known here.
func (a *adopter) signal(id string, sig syscall.Signal) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.byFD {
		if o.id == id {
			_ = unix.PidfdSendSignal(o.fd, sig, nil, 0) // gone is no error
			return true
		}
	}
	return false
}

// holds tells whether a pid is waited for here.
func (a *adopter) holds(pid int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.byFD {
		if o.pid == pid {
			return true
		}
	}
	return false
}

// all lists who is waited for.
func (a *adopter) all() (out []orphan) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.byFD {
		out = append(out, *o)
	}
	return out
}

// run waits until ctx ends.
func (a *adopter) run(ctx context.Context) error {
	defer a.close()
	defer lifecycle.OnEnd(ctx, func() {
		one := [8]byte{1}
		_, _ = unix.Write(a.wake, one[:])
	})()
	events := make([]unix.EpollEvent, 64)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(a.poll, events, -1)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("wait for adopted jobs: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			a.mu.Lock()
			o := a.byFD[e.Fd]
			a.mu.Unlock()
			if o != nil {
				a.settle(o)
			}
		}
	}
	return nil
}

// settle takes the result of an ended process and tells it.
func (a *adopter) settle(o *orphan) {
	ev := Event{Plugin: o.plugin, ID: o.id, Lost: true}
	for end := time.Now().Add(reapWait); ; time.Sleep(time.Millisecond) {
		e, evidence, err := collect(o.fd, o.pid, o.ticks)
		if err == nil {
			e.Id, e.Pid, e.Time = o.id, int64(o.pid), timestamppb.Now()
			ev = Event{Plugin: o.plugin, ID: o.id, Exited: e, Evidence: evidence}
			break
		}
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			break
		}
	}
	a.mu.Lock()
	delete(a.byFD, int32(o.fd))
	_ = unix.Close(o.fd)
	a.mu.Unlock()
	a.ended(o.id)
	a.emit([]Event{ev})
}

func (a *adopter) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.settling.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.byFD {
		_ = unix.Close(o.fd)
	}
	a.byFD = map[int32]*orphan{}
	_ = unix.Close(a.poll)
	_ = unix.Close(a.wake)
}
