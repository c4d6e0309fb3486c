package output

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// This file is the end of an attempt's output: drained, sealed, removed.

// Drained returns a channel that is closed once no process holds either stream
// and every byte is in a segment. It is called when the main process is gone or
// never was: a pipe that hangs up before that has perhaps not been opened yet.
func (s *Store) Drained(key job.Key) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	if a.lane == nil {
		return a.drained
	}
	a.over = true
	ended := a.lane.ends()
	for i, st := range a.streams {
		switch {
		case st.eof:
		case ended[i] && !st.moving:
			s.end(st)
		default:
			// Bytes are in the pipe or on their way out of it: the mover is told.
			s.nudged = append(s.nudged, st)
		}
	}
	if len(s.nudged) > 0 {
		s.wakeUp()
	}
	return a.drained
}

// Finish seals an attempt: sizes and sums are final, END becomes visible, the
// lanes go back. It hashes what is left and may read the segments for that.
//
// alone says that no process of the attempt is left, and that none could have left
// a reader with somebody else by accident: only then may another job of the
// worker's user have the pipes (P19). All others are removed.
func (s *Store) Finish(ctx context.Context, key job.Key, alone bool) (stdout, stderr job.Stream, err error) {
	s.mu.Lock()
	a := s.attempts[key]
	s.mu.Unlock()
	if a == nil {
		return stdout, stderr, errs.E("finish output", errs.NotFound, "OUTPUT", fmt.Errorf("attempt %v is unknown", key))
	}
	s.part(a)
	sums, err := s.seal(ctx, a)
	if isNoSpace(err) {
		err = errs.E("finish output", errs.Exhausted, job.ReasonDiskFull, err)
	}
	if used := s.finish(a, sums, err, alone); used != nil {
		used.remove()
	}
	if err != nil {
		return stdout, stderr, err
	}
	return sums[0], sums[1], nil
}

// finish makes what was sealed visible, or goes on after an error. It returns a lane
// that is not to be used again.
func (s *Store) finish(a *attempt, sums [2]job.Stream, err error, alone bool) (used *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.rejoin(a)
		return nil
	}
	a.finished = true
	used = s.detach(a, alone)
	for i, st := range a.streams {
		st.sha256, st.sealed, st.hash = sums[i].SHA256, true, nil
		if st.private != nil { // it did not come to its end
			s.unref(st.private)
			st.private = nil
		}
		st.notify()
	}
	s.reclaim()
	return used
}

// part takes an attempt's pipes away from the mover, and waits for the move that
// is being made: a pipe that is closed meanwhile would be another one's by then.
func (s *Store) part(a *attempt) {
	for _, st := range a.streams {
		s.mu.Lock()
		st.parted = true
		var rest chan struct{}
		if st.moving {
			rest = make(chan struct{})
			st.rest = rest
		}
		s.mu.Unlock()
		if rest != nil {
			<-rest
		}
	}
}

// rejoin gives them back, for another try; s.mu is held.
func (s *Store) rejoin(a *attempt) {
	for _, st := range a.streams {
		st.parted = false
		if !st.eof && st.fd >= 0 {
			s.nudged = append(s.nudged, st)
		}
	}
	if len(s.nudged) > 0 {
		s.wakeUp()
	}
}

// seal hashes the rest of both streams and writes their END entries. One may
// have been sealed before a crash, the other not.
func (s *Store) seal(ctx context.Context, a *attempt) (sums [2]job.Stream, err error) {
	var left []*stream
	s.mu.Lock()
	discarded := a.discarded
	for i, st := range a.streams {
		sums[i] = job.Stream{Size: st.size, SHA256: st.sha256}
		if !st.sealed {
			left = append(left, st)
		}
	}
	s.mu.Unlock()
	for _, st := range left {
		if discarded {
			continue
		}
		if st.cut {
			s.config.Log.Warn("the end of an output may be missing", "job", a.key.Job, "attempt", a.key.Attempt, "reason", Unread)
			continue
		}
		sum := &sums[st.id-1]
		sum.SHA256, err = s.digest(ctx, st, sum.Size)
		switch {
		case errors.Is(err, errGap):
			// A restarted worker sums from the beginning, and a ring may have given
			// that back: no sum is better than a wrong one.
			s.config.Log.Warn("output has no sum", "job", a.key.Job, "error", err)
		case err != nil:
			return sums, err
		}
	}
	return sums, s.writeEnds(a, left, sums)
}

// detach takes the lane of a finished attempt back, or returns it to be removed;
// s.mu is held.
func (s *Store) detach(a *attempt, alone bool) (used *lane) {
	l := a.lane
	if l == nil {
		return nil
	}
	s.unlist(a)
	if l.once || !alone || !a.streams[0].eof || !a.streams[1].eof {
		return l
	}
	if l.grown || len(s.free) >= openLanes {
		l.close()
		l.grown = false
	}
	s.free = append(s.free, l)
	return nil
}

// unlist ends the mover's interest in the lane of an attempt; s.mu is held.
func (s *Store) unlist(a *attempt) {
	if a.lane == nil {
		return
	}
	for i, st := range a.streams {
		delete(s.byToken, a.lane.tokens[i])
		delete(s.blocked, st)
		st.fd = -1
	}
	a.lane = nil
}

// Remove forgets the output of an attempt that is over, also where it could not be
// sealed: its pipes go with it.
func (s *Store) Remove(key job.Key) error {
	s.mu.Lock()
	a := s.attempts[key]
	s.mu.Unlock()
	if a == nil {
		return nil
	}
	s.part(a)
	err := s.writeRemoved(a)
	s.mu.Lock()
	used := a.lane
	s.unlist(a)
	s.drop(a)
	s.mu.Unlock()
	if used != nil {
		used.remove()
	}
	if isNoSpace(err) {
		err = s.writeRemoved(a) // now there may be room
	}
	return err
}

// drop lets go of everything an attempt has; s.mu is held.
func (s *Store) drop(a *attempt) {
	if s.attempts[a.key] != a {
		return
	}
	delete(s.attempts, a.key)
	defer s.wakeUp() // the mover may remove bytes
	for _, st := range a.streams {
		for _, e := range st.extents {
			s.letGoOf(e)
		}
		st.extents = nil
		if st.private != nil {
			s.unref(st.private)
			st.private = nil
		}
		st.notify()
	}
}

// Discard gives back the bytes of an attempt that was removed while somebody still
// holds a pipe of it. What comes after that is read and thrown away: it needs no room,
// and its writer is not disturbed. Finish and Remove follow when nobody holds it.
func (s *Store) Discard(key job.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil || a.discarded {
		return
	}
	a.discarded = true
	s.empty(a)
	for _, st := range a.streams {
		delete(s.blocked, st)
		if st.private != nil && !st.moving {
			s.unref(st.private)
			st.private = nil
		}
		if !st.eof && st.fd >= 0 {
			s.nudged = append(s.nudged, st)
		}
		st.notify()
	}
	s.wakeUp()
}

// discards tells whether what a stream brings is thrown away.
func (s *Store) discards(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.owner.discarded
}

// throwAway reads what is in a pipe.
func (s *Store) throwAway(fd int) error {
	if s.scratch == nil {
		s.scratch = make([]byte, sumBytes)
	}
	_, err := unix.Read(fd, s.scratch)
	if err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR) {
		return fmt.Errorf("read a pipe: %w", err)
	}
	return nil
}

// Left tells why an attempt that is over is not drained. held: somebody has a pipe of
// it. Otherwise only the mover is awaited; why is what it waits for, if it waits: room
// on the disk.
func (s *Store) Left(key job.Key) (held bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil || a.lane == nil {
		return false, ""
	}
	for _, st := range a.streams {
		if st.eof {
			continue
		}
		held = held || !hungUp(st.fd)
		why = cmp.Or(why, s.blocked[st])
	}
	return held, why
}

// GiveUp throws away what nobody holds and no disk has room for. The end of such a
// stream is declared to be missing (P8).
func (s *Store) GiveUp(key job.Key) {
	s.mu.Lock()
	a := s.attempts[key]
	s.mu.Unlock()
	if a == nil {
		return
	}
	s.part(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range a.streams {
		if a.lane == nil || st.eof || !hungUp(st.fd) {
			continue
		}
		if n, err := unix.IoctlGetInt(st.fd, unix.TIOCINQ); err != nil || n > 0 {
			st.cut = true
		}
		s.end(st)
	}
	s.rejoin(a)
}
