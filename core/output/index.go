package output

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/failpoint"
)

// A segment is two files: NUMBER.seg holds bytes, NUMBER.idx says whose they
// are. An index entry is written BEFORE the move that it announces; how much
// was moved follows from the next entry or from the size of the segment. So a
// kill between any two system calls loses, doubles or misplaces nothing.
type segment struct {
	number  uint64
	private bool
	data    *os.File
	index   *os.File
	path    string // without suffix
	size    uint64 // bytes moved; written by the mover only
	idxSize int64
	moveEnd int64        // where the newest entry of a move ends; guarded by Store.idxMu
	full    bool         // no room could be kept; the same
	kept    int64        // bytes of the index that have room on a full disk; the same
	dirty   bool         // moved to in this life of the worker; guarded by Store.mu
	refs    int          // streams and current uses; guarded by Store.mu
	marks   int          // those of refs that need the index only; guarded by Store.mu
	spent   bool         // its bytes were given back, the index is kept; guarded by Store.mu
	graves  []*segment   // which say that attempts in this one were removed; guarded by Store.mu
	readers atomic.Int32 // reads under way, which keep the files open
	empty   atomic.Bool  // the file of the bytes is gone
	dead    atomic.Bool  // both are
}

// Kinds of index entries.
const (
	kindMove    = 1
	kindEnd     = 2 // a stream is sealed
	kindRemoved = 3 // an attempt was removed
	kindSize    = 4 // how far the segment reached when the worker left
	kindGiven   = 5 // the bytes of an attempt were given back
	kindSpent   = 6 // all bytes of the segment were: the last entry of its index
)

// entrySize is fixed: time 8, job 16, attempt 4, stream 1, kind 1, check 2,
// stream offset or size 8, segment offset 8 (of an end: policy and age, of given
// bytes: the reason), sum 32.
const entrySize = 80

type entry struct {
	time   time.Time
	key    job.Key
	stream StreamID
	kind   byte
	off    uint64
	segOff uint64
	sum    [32]byte
}

// encode appends the entry as it lies on the disk.
func (e *entry) encode(to []byte) []byte {
	start := len(to)
	b := slices.Grow(to, entrySize)[start:]
	b = binary.LittleEndian.AppendUint64(b, uint64(e.time.UnixNano()))
	b = append(b, e.key.Job[:]...)
	b = binary.LittleEndian.AppendUint32(b, e.key.Attempt)
	b = append(b, byte(e.stream), e.kind, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, e.off)
	b = binary.LittleEndian.AppendUint64(b, e.segOff)
	b = append(b, e.sum[:]...)
	binary.LittleEndian.PutUint16(b[30:], check(b))
	return append(to, b...)
}

// check folds a checksum of an entry, but for its own place, into 16 bits.
// Zero is left to entries of workers that wrote none.
func check(b []byte) uint16 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(b[:30], table), table, b[32:entrySize])
	return max(1, uint16(sum)^uint16(sum>>16))
}

// decodeEntry reads an entry; ok is false for what was never written as one.
func decodeEntry(b []byte) (e entry, ok bool) {
	e = entry{
		time:   time.Unix(0, int64(binary.LittleEndian.Uint64(b))),
		key:    job.Key{Job: job.ID(b[8:24]), Attempt: binary.LittleEndian.Uint32(b[24:])},
		stream: StreamID(b[28]), kind: b[29],
		off: binary.LittleEndian.Uint64(b[32:]), segOff: binary.LittleEndian.Uint64(b[40:]),
		sum: [32]byte(b[48:80]),
	}
	if c := binary.LittleEndian.Uint16(b[30:]); c != 0 && c != check(b) {
		return e, false
	}
	if e.kind == kindEnd && binary.LittleEndian.Uint16(b[30:]) == 0 {
		e.segOff &= 1<<endShift - 1 // whoever wrote no check wrote no age
	}
	switch e.kind {
	case kindRemoved, kindSpent:
		return e, true
	case kindGiven:
		return e, e.segOff > 0 && e.segOff < uint64(lastReason)
	case kindSize:
		return e, e.segOff < maxOffset
	case kindMove, kindEnd:
		return e, (e.stream == Stdout || e.stream == Stderr) && e.off < maxOffset && e.segOff < maxOffset
	default:
		return e, false
	}
}

// maxOffset is more than any disk holds; sums of two do not overflow.
const maxOffset = 1 << 62

// newSegment makes the files of a segment; only the mover calls it.
func (s *Store) newSegment(private bool) (*segment, error) {
	s.mu.Lock()
	s.number++
	seg := &segment{number: s.number, private: private, refs: 1}
	s.mu.Unlock()
	seg.path = filepath.Join(s.config.Dir, "segments", fmt.Sprintf("%012d", seg.number))
	if err := s.config.fault("segment"); err != nil {
		return nil, fmt.Errorf("make a segment: %w", err)
	}
	failpoint.At(failpoint.WorkerSegmentBefore)
	var err error
	if seg.data, err = os.OpenFile(seg.path+".seg", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("make a segment: %w", err)
	}
	if seg.index, err = os.OpenFile(seg.path+".idx", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		_ = seg.data.Close()
		_ = os.Remove(seg.path + ".seg")
		return nil, fmt.Errorf("make a segment: %w", err)
	}
	failpoint.At(failpoint.WorkerSegmentAfter)
	if !private {
		seg.keepRoom()
	}
	s.mu.Lock()
	s.segments[seg.number] = seg
	s.mu.Unlock()
	return seg, nil
}

func (seg *segment) close() {
	_ = seg.data.Close()
	_ = seg.index.Close()
}

// mark holds a segment for what its index says: a small output that was given
// back must not keep the bytes of others. s.mu is held.
func (seg *segment) mark() {
	seg.refs++
	seg.marks++
}

// unmark lets go of a mark; s.mu is held.
func (s *Store) unmark(seg *segment) {
	seg.marks--
	s.unref(seg)
}

// unref lets go of a segment. Without bytes that anybody needs the mover removes
// those, with the last reference both files go. s.mu is held.
func (s *Store) unref(seg *segment) {
	seg.refs--
	if seg.refs > 0 {
		if seg.refs == seg.marks && !seg.spent {
			s.spend(seg)
		}
		return
	}
	delete(s.segments, seg.number)
	if s.notes == seg {
		s.notes = nil
	}
	if !seg.spent {
		s.total -= int64(seg.size)
	}
	// In this order: bytes without an index are nobody's (recover removes them),
	// an index without bytes would be a loss.
	_ = os.Remove(seg.path + ".idx")
	_ = os.Remove(seg.path + ".seg")
	seg.dead.Store(true)
	if seg.readers.Load() == 0 {
		seg.close()
	}
	for _, g := range seg.graves {
		s.unmark(g)
	}
	seg.graves = nil
}

// release ends a read; the last reader of a removed segment closes it.
func (seg *segment) release() {
	switch {
	case seg.readers.Add(-1) > 0:
	case seg.dead.Load():
		seg.close()
	case seg.empty.Load():
		_ = seg.data.Close()
	}
}

// announce writes entries at the end of a segment's index, with one write. One
// that is cut short by a full disk leaves a torn tail, which the next overwrites.
func (s *Store) announce(seg *segment, entries ...entry) error {
	b := make([]byte, 0, 2*entrySize)
	for i := range entries {
		b = entries[i].encode(b)
	}
	s.idxMu.Lock()
	defer s.idxMu.Unlock()
	if err := s.config.fault("index"); err != nil {
		return fmt.Errorf("write the output index: %w", err)
	}
	if _, err := seg.index.WriteAt(b, seg.idxSize); err != nil {
		return fmt.Errorf("write the output index: %w", err)
	}
	seg.idxSize += int64(len(b))
	if entries[0].kind == kindMove {
		seg.moveEnd = seg.idxSize
	}
	if seg.kept > 0 && seg.idxSize > seg.kept-indexRoom/2 {
		seg.keepRoom()
	}
	return nil
}

// indexRoom is kept free for the index of the segment that ends and removals are
// written to, in bytes: on a full disk they are what makes room.
const indexRoom = 64 << 10

// keepRoom takes room for further entries; a wish. Store.idxMu is held, or nobody else
// has the segment.
func (seg *segment) keepRoom() {
	err := unix.Fallocate(int(seg.index.Fd()), unix.FALLOC_FL_KEEP_SIZE, seg.idxSize, indexRoom)
	if seg.full = isNoSpace(err); err == nil {
		seg.kept = seg.idxSize + indexRoom
	}
}

// keepNotes remembers the newest segment of an earlier life whose index has room kept.
// No moves are written to it: how far its last one reached may be in doubt. When
// nothing needs it any more, its room is free for another. s.mu is held.
func (s *Store) keepNotes(seg *segment) {
	info, err := seg.index.Stat()
	if err != nil || seg.spent {
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Blocks*512 < seg.idxSize+indexRoom/2 {
		return
	}
	s.notes = seg
}

// retract takes the entry of a move back that was not made, if it is still the last.
func (s *Store) retract(seg *segment) {
	s.idxMu.Lock()
	defer s.idxMu.Unlock()
	if seg.moveEnd > 0 && seg.idxSize == seg.moveEnd {
		seg.idxSize -= entrySize
		seg.moveEnd = 0
	}
}

// announceSize bounds the last move for a host that crashes later. Without it
// that move is in doubt then, so it is a wish.
func (s *Store) announceSize(seg *segment) {
	if err := s.announce(seg, entry{time: s.config.Now(), kind: kindSize, segOff: seg.size}); err != nil {
		s.config.Log.Warn("output index not closed", "path", seg.path, "error", err)
	}
}

// writeEnds seals streams of an attempt in the index of the newest shared segment.
func (s *Store) writeEnds(a *attempt, sealed []*stream, sums [2]job.Stream) error {
	if len(sealed) == 0 {
		return nil
	}
	now, ended := s.config.Now(), s.age.now()
	entries := make([]entry, 0, 2)
	for _, st := range sealed {
		sum := sums[st.id-1]
		e := entry{time: now, key: a.key, stream: st.id, kind: kindEnd, off: sum.Size, segOff: packEnd(a.opts.Policy, ended, st.cut)}
		// All zeros stand for no sum.
		if _, err := hex.Decode(e.sum[:], []byte(sum.SHA256)); err != nil {
			return fmt.Errorf("seal a stream: %w", err)
		}
		entries = append(entries, e)
	}
	seg, err := s.holdShared()
	if err != nil {
		return err
	}
	failpoint.At(failpoint.WorkerEndBefore)
	err = s.announce(seg, entries...)
	failpoint.At(failpoint.WorkerEndAfter)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.unref(seg)
	if err != nil {
		return err
	}
	for _, st := range sealed {
		// The entry must live as long as the stream: an extent without bytes.
		seg.mark()
		st.extents = append(st.extents, extent{seg: seg, off: sums[st.id-1].Size})
	}
	a.ended = ended
	a.note(seg)
	return nil
}

// note remembers that a segment speaks of an attempt; s.mu is held. Private
// ones need no note: they go with their stream.
func (a *attempt) note(seg *segment) {
	if !seg.private && !slices.Contains(a.noted, seg) {
		a.noted = append(a.noted, seg)
	}
}

// writeRemoved records that an attempt is gone.
func (s *Store) writeRemoved(a *attempt) error {
	seg, err := s.holdShared()
	if err != nil {
		return err
	}
	err = s.announce(seg, entry{time: s.config.Now(), key: a.key, kind: kindRemoved})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.bury(a, seg)
	}
	s.unref(seg)
	return err
}

// writeGiven records that the bytes of an attempt were given back.
func (s *Store) writeGiven(a *attempt) error {
	seg, err := s.holdShared()
	if err != nil {
		return err
	}
	err = s.announce(seg, entry{time: s.config.Now(), key: a.key, kind: kindGiven, segOff: uint64(a.given)})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.bury(a, seg)
	}
	s.unref(seg)
	return err
}

// bury keeps the segment that says that an attempt was removed, or its bytes given
// back, for as long as one lives that speaks of it: it would come back with a
// restart. s.mu is held.
func (s *Store) bury(a *attempt, grave *segment) {
	for _, seg := range a.noted {
		if seg != grave && !seg.dead.Load() {
			seg.graves = append(seg.graves, grave)
			grave.mark()
		}
	}
}

// holdShared returns the shared segment with a reference of the caller's own:
// the mover may move on to the next one meanwhile. On a full disk, on which none can be
// made, it is one of an earlier life.
func (s *Store) holdShared() (*segment, error) {
	for {
		seg, err := s.currentShared()
		if isNoSpace(err) {
			s.mu.Lock()
			notes := s.notes
			if notes != nil && !notes.spent {
				notes.refs++
				s.mu.Unlock()
				return notes, nil
			}
			s.mu.Unlock()
		}
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		same := s.shared == seg
		if same {
			seg.refs++
		}
		s.mu.Unlock()
		if same {
			return seg, nil
		}
	}
}

// newShared makes a segment for small outputs, or none, if the disk has no room for the
// first entries of its index.
func (s *Store) newShared() (*segment, error) {
	seg, err := s.newSegment(false)
	if err != nil {
		return nil, err
	}
	if seg.full {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unref(seg)
		return nil, fmt.Errorf("keep room for the output index: %w", syscall.ENOSPC)
	}
	return seg, nil
}

// currentShared returns the segment that small outputs go to now.
func (s *Store) currentShared() (*segment, error) {
	s.mu.Lock()
	seg := s.shared
	s.mu.Unlock()
	if seg != nil {
		return seg, nil
	}
	fresh, err := s.newShared()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared != nil { // somebody else was faster
		s.unref(fresh)
		return s.shared, nil
	}
	s.shared = fresh
	return fresh, nil
}
