package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// chunkBytes is how much one Next returns at the most.
const chunkBytes = 512 << 10

// Chunk is one piece of a stream: bytes, a declared gap, or the end.
type Chunk struct {
	Stream StreamID
	Offset uint64
	Time   time.Time
	Data   []byte // valid until the next call of Next; for ever with Into
	Gap    *Gap
	End    *job.Stream
}

// Unread is the reason of a gap at the end of a stream: its worker and its plugin were
// killed together, and with them what was still in the pipe. Nobody knows how much
// that was, if anything; the gap has no length.
const Unread = "UNREAD"

// ReasonGone is the reason of the error that says that there is no output.
const ReasonGone = "OUTPUT_GONE"

// Gap declares bytes that cannot be had any more.
type Gap struct {
	To     uint64 // first offset after it
	Reason string
}

// Reader reads one stream, or both in the order of writing. It is used by one
// goroutine; a reader that stands still costs nothing but its buffer.
type Reader struct {
	store   *Store
	cursors []*cursor
	memory  func(int) []byte
	most    uint64 // bytes of a piece
	buf     []byte // what memory gave last, if it is the reader's own
	small   bool   // the last piece was: there may soon be more
	timer   *time.Timer
}

type cursor struct {
	st    *stream
	off   uint64
	round uint64 // up to where nothing more is gathered
	told  bool   // that the end may be missing
	ended bool
}

// Read begins at an absolute offset of one stream.
func (s *Store) Read(key job.Key, id StreamID, from uint64) (*Reader, error) {
	a, err := s.find(key)
	if err != nil {
		return nil, err
	}
	if id != Stdout && id != Stderr {
		return nil, errs.Field("read output", "stream", "STREAM", "%d is neither 1 nor 2", id)
	}
	return newReader(s, &cursor{st: a.streams[id-1], off: from}), nil
}

// ReadBoth begins at absolute offsets of both streams.
func (s *Store) ReadBoth(key job.Key, from [2]uint64) (*Reader, error) {
	a, err := s.find(key)
	if err != nil {
		return nil, err
	}
	return newReader(s, &cursor{st: a.streams[0], off: from[0]}, &cursor{st: a.streams[1], off: from[1]}), nil
}

func newReader(s *Store, cursors ...*cursor) *Reader {
	r := &Reader{store: s, cursors: cursors, most: chunkBytes}
	r.memory = r.own
	r.count(1)
	return r
}

// count adds the reader to those of its streams.
func (r *Reader) count(n int) {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	for _, c := range r.cursors {
		c.st.readers += n
	}
}

// own is memory that is used again by the next piece.
func (r *Reader) own(n int) []byte {
	if len(r.buf) < n {
		r.buf = make([]byte, max(n, 4<<10))
	}
	return r.buf[:n]
}

// Into lets the reader ask for the memory of each piece that has data, with its
// size in bytes. The reader does not touch it again after Next has returned it.
func (r *Reader) Into(memory func(bytes int) []byte) { r.memory = memory }

// Limit bounds the pieces that follow, in bytes.
func (r *Reader) Limit(n int) { r.most = min(uint64(n), chunkBytes) }

// Gone tells whether there is no output of an attempt any more.
func (s *Store) Gone(key job.Key) bool {
	_, err := s.find(key)
	return err != nil
}

func (s *Store) find(key job.Key) (*attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[key]; a != nil {
		if !a.discarded {
			return a, nil
		}
	}
	return nil, gone(key)
}

func gone(key job.Key) error {
	return errs.E("read output", errs.NotFound, ReasonGone,
		fmt.Errorf("there is no output of attempt %d of job %s", key.Attempt, key.Job))
}

// removed tells whether the job of an attempt was removed; Store.mu is held.
func (s *Store) removed(a *attempt) bool { return a.discarded || s.attempts[a.key] != a }

// gone tells whether what is read was removed before its end.
func (r *Reader) gone() bool {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return slices.ContainsFunc(r.cursors, func(c *cursor) bool { return !c.ended && r.store.removed(c.st.owner) })
}

// Next returns the next piece. When there is none yet it waits if follow is
// set, else it returns io.EOF. After the last END it returns io.EOF.
func (r *Reader) Next(ctx context.Context, follow bool) (Chunk, error) {
	if r.small && follow {
		r.gather(ctx)
	}
	for {
		if err := ctx.Err(); err != nil {
			return Chunk{}, err
		}
		c, found, wait := r.pick()
		if found == nil && wait == nil && r.gone() {
			// The job was removed: there is no more, and no end (P16).
			return Chunk{}, gone(r.cursors[0].st.owner.key)
		}
		if found != nil {
			return r.fetch(c, found)
		}
		if len(wait) == 0 || !follow {
			return Chunk{}, io.EOF
		}
		if len(wait) == 1 {
			wait = append(wait, nil)
		}
		select {
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		case <-wait[0]:
		case <-wait[1]:
		}
	}
}

// found is what pick saw at a cursor.
type found struct {
	ext extent
	gap *Gap
	end *job.Stream
}

// pick chooses the cursor whose next piece is the oldest. With nothing to give
// it returns the channels that tell of news.
func (r *Reader) pick() (*cursor, *found, []<-chan struct{}) {
	s := r.store
	s.mu.Lock()
	defer s.mu.Unlock()
	var (
		best  *cursor
		what  *found
		waits []<-chan struct{}
	)
	for _, c := range r.cursors {
		if c.ended || s.removed(c.st.owner) {
			continue
		}
		f := c.peek()
		if f == nil {
			if c.st.changed == nil {
				c.st.changed = make(chan struct{})
			}
			waits = append(waits, c.st.changed)
			continue
		}
		if best == nil || what.end != nil && f.end == nil || f.end == nil && f.ext.time.Before(what.ext.time) {
			best, what = c, f
		}
	}
	if what != nil && what.ext.seg != nil && what.gap == nil && what.end == nil {
		what.ext.seg.readers.Add(1)
	}
	return best, what, waits
}

// peek looks at a cursor's next piece; Store.mu is held.
func (c *cursor) peek() *found {
	if e, gap, ok := c.st.at(c.off); ok {
		return &found{ext: e, gap: gap}
	}
	switch {
	case !c.st.owner.finished:
		return nil
	case c.st.cut && !c.told:
		return &found{gap: &Gap{To: max(c.off, c.st.size), Reason: Unread}}
	default:
		return &found{end: &job.Stream{Size: c.st.size, SHA256: c.st.sha256}}
	}
}

// at finds the range that holds an offset, or the gap before the next one.
func (st *stream) at(off uint64) (extent, *Gap, bool) {
	if off >= st.size {
		return extent{}, nil, false
	}
	i, _ := slices.BinarySearchFunc(st.extents, off, func(e extent, o uint64) int {
		if e.off+e.length <= o {
			return -1
		}
		if e.off > o {
			return 1
		}
		return 0
	})
	for ; i < len(st.extents); i++ {
		e := st.extents[i]
		if e.length == 0 || e.off+e.length <= off {
			continue
		}
		if e.off > off {
			return extent{time: e.time}, st.gap(off, e.off), true
		}
		return e, nil, true
	}
	return extent{}, st.gap(off, st.size), true
}

// gap declares the range, or its beginning when reasons differ.
func (st *stream) gap(from, to uint64) *Gap {
	for _, l := range st.lost {
		switch {
		case l.from <= from && from < l.to:
			return &Gap{To: min(to, l.to), Reason: "DAMAGED"}
		case from < l.from:
			to = min(to, l.from)
		}
	}
	return &Gap{To: to, Reason: st.owner.given.String()}
}

// lookup is at for callers without the lock; a found segment is held for reading.
func (s *Store) lookup(st *stream, off uint64) (extent, *Gap, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, gap, ok := st.at(off)
	if ok && gap == nil {
		e.seg.readers.Add(1)
	}
	return e, gap, ok
}

// fetch turns what pick saw into a chunk; it reads without the lock.
func (r *Reader) fetch(c *cursor, f *found) (Chunk, error) {
	out := Chunk{Stream: c.st.id, Offset: c.off, Time: f.ext.time}
	r.small = false
	switch {
	case f.end != nil:
		c.ended = true
		out.End = f.end
		return out, nil
	case f.gap != nil:
		c.off, c.told = f.gap.To, f.gap.Reason == Unread
		out.Gap = f.gap
		return out, nil
	}
	defer f.ext.seg.release()
	skip := c.off - f.ext.off
	n := min(f.ext.length-skip, r.most)
	data := r.memory(int(n))
	if _, err := f.ext.seg.data.ReadAt(data, int64(f.ext.segOff+skip)); err != nil {
		if errors.Is(err, io.EOF) {
			// Somebody cut the file. An end of file would pass for the stream's.
			err = fmt.Errorf("%s is cut off: %w", f.ext.seg.path, io.ErrUnexpectedEOF)
		}
		return Chunk{}, errs.E("read output", errs.Internal, "OUTPUT", err)
	}
	out.Data = data
	c.off += n
	r.small = n < min(gathered, r.most)
	return out, nil
}

// Close ends the reader.
func (r *Reader) Close() {
	if r.buf = nil; len(r.cursors) > 0 {
		r.count(-1)
		r.cursors = nil
	}
}
