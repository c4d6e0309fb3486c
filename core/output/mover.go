package output

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/plugins/failpoint"
)

// Pace of the mover.
const (
	movesPerTurn = 16                     // of one stream before others get their turn
	retryAfter   = 100 * time.Millisecond // for streams that wait for room
	extentSpan   = 50 * time.Millisecond  // moves nearer than this share a time
	maxExtents   = 4096                   // per stream, above which times get coarser
)

// Run moves bytes until ctx ends, then takes what is in the pipes and returns.
func (s *Store) Run(ctx context.Context) error {
	defer lifecycle.OnEnd(ctx, s.wakeUp)()
	var retaining sync.WaitGroup
	defer retaining.Wait()
	until, cancel := context.WithCancel(ctx)
	defer cancel()
	retaining.Go(func() { s.retainLoop(until) })
	events := make([]unix.EpollEvent, 256)
	ready := map[*stream]bool{} // value: the other side hung up
	for {
		if err := s.wait(ctx, events, ready); err != nil {
			return err
		}
		s.giveBack()
		last := ctx.Err() != nil
		if last {
			s.everything(ready)
		}
		for st, hup := range ready {
			more, err := s.move(st, hup)
			if err != nil {
				return fmt.Errorf("move output: %w", err)
			}
			if !more {
				delete(ready, st)
			}
		}
		if last && len(ready) == 0 {
			return nil
		}
		if len(ready) == 0 {
			// Whoever is ready goes first, on this thread: it is about to block in the
			// kernel, and waking another one for them takes longer. They are readers
			// that the mover has woken, mostly.
			runtime.Gosched()
		}
	}
}

func (s *Store) wakeUp() {
	one := [8]byte{1}
	_, _ = unix.Write(s.wake, one[:])
}

// wait blocks until a lane has news. Streams that have more to move, or wait
// for room, shorten the wait.
func (s *Store) wait(ctx context.Context, events []unix.EpollEvent, ready map[*stream]bool) error {
	timeout := -1
	s.mu.Lock()
	if len(s.blocked) > 0 {
		timeout = int(retryAfter.Milliseconds())
	}
	s.mu.Unlock()
	if len(ready) > 0 || ctx.Err() != nil {
		timeout = 0
	}
	n, err := unix.EpollWait(s.epoll, events, timeout)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return fmt.Errorf("wait for output: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events[:max(n, 0)] {
		if e.Fd == wakeToken {
			var b [8]byte
			_, _ = unix.Read(s.wake, b[:])
			continue
		}
		st := s.byToken[e.Fd]
		switch {
		case st == nil: // of a lane that is free
		case e.Events&unix.EPOLLIN != 0:
			ready[st] = ready[st] || e.Events&unix.EPOLLHUP != 0
		case st.owner.over:
			ready[st] = true
		}
	}
	for _, st := range s.nudged {
		ready[st] = true
	}
	clear(s.nudged)
	s.nudged = s.nudged[:0]
	if n <= 0 {
		for st := range s.blocked {
			ready[st] = ready[st] || hungUp(st.fd)
		}
	}
	return nil
}

// hungUp asks the pipe itself, for streams whose edge was seen long ago.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
}

// everything marks all open streams: the last pass before the end.
func (s *Store) everything(ready map[*stream]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.byToken {
		if _, waits := s.blocked[st]; !waits {
			ready[st] = ready[st] || hungUp(st.fd)
		}
	}
}

// move takes what a pipe holds. more tells that the stream wants another turn.
func (s *Store) move(st *stream, hup bool) (more bool, err error) {
	defer s.letGo(st)
	for range movesPerTurn {
		fd, ok := s.hold(st)
		if !ok {
			return false, nil
		}
		pending, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			return false, fmt.Errorf("ask a pipe: %w", err)
		}
		if pending == 0 {
			s.moved(st, hup)
			return false, nil
		}
		if s.discards(st) {
			if err := s.throwAway(fd); err != nil {
				return false, err
			}
			continue
		}
		if why := s.room(st, fd); why != "" {
			s.block(st, why)
			return false, nil
		}
		switch err := s.moveOnce(fd, st); {
		case isNoSpace(err):
			s.block(st, job.ReasonDiskFull)
			return false, nil
		case err != nil && !errors.Is(err, syscall.EAGAIN):
			return false, err
		}
	}
	return true, nil
}

// hold says which pipe to move from, if any; it stays open until letGo.
func (s *Store) hold(st *stream) (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.moving = st.fd >= 0 && !st.eof && !st.parted
	return st.fd, st.moving
}

func (s *Store) letGo(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.moving = false
	if st.rest != nil {
		close(st.rest)
		st.rest = nil
	}
}

// room tells why a stream must wait, if it must: a Keep stream at the quota. What the
// ended processes of an attempt have left in a pipe is no more than the pipe holds, and
// nothing else would ever make room for it: it is taken above the quota.
func (s *Store) room(st *stream, fd int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Looking for what to give back costs time: again only after a chunk more.
	if s.total > s.quota && s.total > s.tried+int64(s.config.sizes.chunk) {
		s.reclaim()
		s.tried = s.total
	}
	if s.total <= s.quota {
		s.tried = 0
	}
	if s.total > s.quota && st.owner.opts.Policy == job.Keep && (!st.owner.over || !hungUp(fd)) {
		return job.ReasonQuota
	}
	return ""
}

func (s *Store) block(st *stream, why string) {
	s.mu.Lock()
	_, known := s.blocked[st]
	s.blocked[st] = why
	s.mu.Unlock()
	if !known {
		s.config.Log.Warn("output waits for room", "job", st.owner.key.Job, "condition", why)
	}
}

// moveOnce announces and makes one move.
func (s *Store) moveOnce(fd int, st *stream) error {
	seg, err := s.target(st)
	if err != nil {
		return err
	}
	now := s.config.Now()
	e := entry{time: now, key: st.owner.key, stream: st.id, kind: kindMove, off: st.size, segOff: seg.size}
	if err := s.announce(seg, e); err != nil {
		return err
	}
	failpoint.At(failpoint.WorkerMoveBefore)
	n, err := s.splice(fd, seg)
	if err != nil {
		s.retract(seg) // tried every retryAfter, it would fill the disk with entries
		return err
	}
	failpoint.At(failpoint.WorkerMoveAfter)
	s.mu.Lock()
	seg.size += uint64(n)
	seg.dirty = true
	s.total += n
	st.add(extent{seg: seg, segOff: e.segOff, off: e.off, length: uint64(n), time: now})
	st.owner.note(seg)
	st.lastWrite = now
	if st.owner.discarded { // meanwhile
		st.letGo(s, func(e extent) bool { return e.length > 0 })
	}
	delete(s.blocked, st)
	passed := st.owner.opts.Policy == job.Fail && st.size > st.owner.opts.Limit && !st.exceeded
	st.exceeded = st.exceeded || passed
	st.notify()
	s.mu.Unlock()
	if passed && s.config.Exceeded != nil {
		s.config.Exceeded(st.owner.key, st.id)
	}
	return nil
}

// splice moves what is in a pipe, at most sizes.move, to the end of a segment.
func (s *Store) splice(fd int, seg *segment) (int64, error) {
	if err := s.config.fault("move"); err != nil {
		return 0, err
	}
	at := int64(seg.size)
	return unix.Splice(fd, nil, int(seg.data.Fd()), &at, int(s.config.sizes.move), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
}

// add appends a range, joined to the one before where it continues it.
func (st *stream) add(e extent) {
	if e.length == 0 {
		return
	}
	st.size = max(st.size, e.off+e.length)
	if n := len(st.extents); n > 0 {
		last := &st.extents[n-1]
		near := e.time.Sub(last.time) < extentSpan || n > maxExtents
		if last.seg == e.seg && last.segOff+last.length == e.segOff && last.off+last.length == e.off && near {
			last.length += e.length
			return
		}
	}
	e.seg.refs++
	st.extents = append(st.extents, e)
}

// target chooses the segment for the next move of a stream.
func (s *Store) target(st *stream) (*segment, error) {
	if st.size < s.config.sizes.private {
		seg, err := s.currentShared()
		if err != nil || seg.size < s.config.sizes.shared {
			return seg, err
		}
		fresh, err := s.newShared()
		if err != nil {
			return nil, err // ends and removals still have room in the old one
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shared = fresh
		s.unref(seg)
		return fresh, nil
	}
	s.mu.Lock()
	seg := st.private
	s.mu.Unlock()
	if seg != nil && seg.size < s.config.sizes.chunk {
		return seg, nil
	}
	seg, err := s.newSegment(true)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	old := st.private
	st.private = seg
	s.mu.Unlock()
	if old == nil {
		grow(st.fd)
		s.mu.Lock()
		if l := st.owner.lane; l != nil {
			l.grown = true
		}
		s.mu.Unlock()
	} else {
		s.hashAhead(st)
		s.mu.Lock()
		s.unref(old)
		s.mu.Unlock()
	}
	return seg, nil
}

// moved notes that all is moved that was in a pipe.
func (s *Store) moved(st *stream, hup bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.moving = false
	delete(s.blocked, st)
	// What epoll said may be old, or of the job before: the pipe itself is asked.
	if hup && st.owner.over && st.fd >= 0 && st.owner.lane.ends()[st.id-1] {
		s.end(st)
	}
}

// end notes that no process holds a stream any more; s.mu is held.
func (s *Store) end(st *stream) {
	if st.eof {
		return
	}
	st.eof = true
	delete(s.blocked, st)
	if st.private != nil {
		s.unref(st.private)
		st.private = nil
	}
	a := st.owner
	if a.streams[0].eof && a.streams[1].eof {
		select {
		case <-a.drained:
		default:
			close(a.drained)
		}
	}
}
