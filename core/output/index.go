package output

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/job"
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
	refs    int          // streams and current uses; guarded by Store.mu
	readers atomic.Int32 // reads under way, which keep the files open
	dead    atomic.Bool
}

// Kinds of index entries.
const (
	kindMove    = 1
	kindEnd     = 2 // a stream is sealed
	kindRemoved = 3 // an attempt was removed
)

// entrySize is fixed: time 8, job 16, attempt 4, stream 1, kind 1, unused 2,
// stream offset or size 8, segment offset 8, sum 32.
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

func (e *entry) encode() []byte {
	b := make([]byte, 0, entrySize)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.time.UnixNano()))
	b = append(b, e.key.Job[:]...)
	b = binary.LittleEndian.AppendUint32(b, e.key.Attempt)
	b = append(b, byte(e.stream), e.kind, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, e.off)
	b = binary.LittleEndian.AppendUint64(b, e.segOff)
	return append(b, e.sum[:]...)
}

func decodeEntry(b []byte) entry {
	return entry{
		time:   time.Unix(0, int64(binary.LittleEndian.Uint64(b))),
		key:    job.Key{Job: job.ID(b[8:24]), Attempt: binary.LittleEndian.Uint32(b[24:])},
		stream: StreamID(b[28]), kind: b[29],
		off: binary.LittleEndian.Uint64(b[32:]), segOff: binary.LittleEndian.Uint64(b[40:]),
		sum: [32]byte(b[48:80]),
	}
}

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
	var err error
	if seg.data, err = os.OpenFile(seg.path+".seg", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("make a segment: %w", err)
	}
	if seg.index, err = os.OpenFile(seg.path+".idx", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		_ = seg.data.Close()
		_ = os.Remove(seg.path + ".seg")
		return nil, fmt.Errorf("make a segment: %w", err)
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

// unref lets go of a segment; the last one removes its files. s.mu is held.
func (s *Store) unref(seg *segment) {
	if seg.refs--; seg.refs > 0 {
		return
	}
	delete(s.segments, seg.number)
	s.total -= int64(seg.size)
	_ = os.Remove(seg.path + ".seg")
	_ = os.Remove(seg.path + ".idx")
	seg.dead.Store(true)
	if seg.readers.Load() == 0 {
		seg.close()
	}
}

// release ends a read; the last reader of a removed segment closes it.
func (seg *segment) release() {
	if seg.readers.Add(-1) == 0 && seg.dead.Load() {
		seg.close()
	}
}

// announce writes an entry at the end of a segment's index. A write that is cut
// short by a full disk leaves a torn tail, which the next one overwrites.
func (s *Store) announce(seg *segment, e *entry) error {
	s.idxMu.Lock()
	defer s.idxMu.Unlock()
	if err := s.config.fault("index"); err != nil {
		return fmt.Errorf("write the output index: %w", err)
	}
	if _, err := seg.index.WriteAt(e.encode(), seg.idxSize); err != nil {
		return fmt.Errorf("write the output index: %w", err)
	}
	seg.idxSize += entrySize
	return nil
}

// writeEnd seals a stream in the index of the newest shared segment.
func (s *Store) writeEnd(st *stream, sum job.Stream) error {
	e := entry{time: s.config.Now(), key: st.owner.key, stream: st.id, kind: kindEnd, off: sum.Size}
	if _, err := hex.Decode(e.sum[:], []byte(sum.SHA256)); err != nil {
		return fmt.Errorf("seal a stream: %w", err)
	}
	// All zeros stand for no sum.
	seg, err := s.holdShared()
	if err != nil {
		return err
	}
	err = s.announce(seg, &e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unref(seg)
		return err
	}
	// The entry must live as long as the stream: an extent without bytes.
	st.extents = append(st.extents, extent{seg: seg, off: sum.Size})
	return nil
}

func (s *Store) writeRemoved(key job.Key) error {
	seg, err := s.holdShared()
	if err != nil {
		return err
	}
	err = s.announce(seg, &entry{time: s.config.Now(), key: key, kind: kindRemoved})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unref(seg)
	return err
}

// holdShared returns the shared segment with a reference of the caller's own:
// the mover may move on to the next one meanwhile.
func (s *Store) holdShared() (*segment, error) {
	for {
		seg, err := s.currentShared()
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

// currentShared returns the segment that small outputs go to now.
func (s *Store) currentShared() (*segment, error) {
	s.mu.Lock()
	seg := s.shared
	s.mu.Unlock()
	if seg != nil {
		return seg, nil
	}
	fresh, err := s.newSegment(false)
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

// recover rebuilds the memory from the indexes.
func (s *Store) recover() error {
	names, err := filepath.Glob(filepath.Join(s.config.Dir, "segments", "*.idx"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	removed := map[job.Key]bool{}
	for _, name := range names {
		if err := s.recoverSegment(strings.TrimSuffix(name, ".idx"), removed); err != nil {
			return err
		}
	}
	for key := range removed {
		if a := s.attempts[key]; a != nil {
			s.drop(a)
		}
	}
	for _, a := range s.attempts {
		sealed := 0
		for _, st := range a.streams {
			slices.SortStableFunc(st.extents, func(x, y extent) int { return int(int64(x.off) - int64(y.off)) })
			if st.sealed {
				sealed++
			}
		}
		if a.finished = sealed == len(a.streams); a.finished {
			close(a.drained)
		}
	}
	for _, seg := range s.segments {
		if seg.refs--; seg.refs <= 0 { // the reference that held it during recovery
			seg.refs = 1
			s.unref(seg)
		}
	}
	return nil
}

func (s *Store) recoverSegment(path string, removed map[job.Key]bool) error {
	var number uint64
	if _, err := fmt.Sscanf(filepath.Base(path), "%d", &number); err != nil {
		return fmt.Errorf("%s is no segment: %w", path, err)
	}
	data, err := os.OpenFile(path+".seg", os.O_RDWR, 0)
	if errors.Is(err, syscall.ENOENT) { // killed in the middle of its removal
		return os.Remove(path + ".idx")
	}
	if err != nil {
		return err
	}
	index, err := os.OpenFile(path+".idx", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := data.Stat()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(path + ".idx")
	if err != nil {
		return err
	}
	raw = raw[:len(raw)/entrySize*entrySize]
	seg := &segment{
		number: number, data: data, index: index, path: path, size: uint64(info.Size()), idxSize: int64(len(raw)), refs: 1,
	}
	s.segments[number] = seg
	s.number = max(s.number, number)
	s.total += info.Size()
	s.replay(seg, raw, removed)
	return nil
}

// replay turns index entries back into extents: a move reaches to the next
// move, the last one to the end of the segment.
func (s *Store) replay(seg *segment, raw []byte, removed map[job.Key]bool) {
	var last *entry
	settle := func(end uint64) {
		if last != nil && end > last.segOff {
			st := s.recovered(last.key).streams[last.stream-1]
			st.add(extent{seg: seg, segOff: last.segOff, off: last.off, length: end - last.segOff, time: last.time})
		}
	}
	for b := range slices.Chunk(raw, entrySize) {
		e := decodeEntry(b)
		switch {
		case e.kind == kindRemoved:
			removed[e.key] = true
		case e.stream != Stdout && e.stream != Stderr:
		case e.kind == kindEnd:
			st := s.recovered(e.key).streams[e.stream-1]
			st.sealed = true
			if e.sum != [32]byte{} {
				st.sha256 = hex.EncodeToString(e.sum[:])
			}
			st.size = max(st.size, e.off)
			st.extents = append(st.extents, extent{seg: seg, off: e.off})
			seg.refs++
		case e.kind == kindMove:
			settle(e.segOff)
			last = &e
		}
	}
	settle(seg.size)
}

func (s *Store) recovered(key job.Key) *attempt {
	a := s.attempts[key]
	if a == nil {
		a = newAttempt(key, Options{})
		s.attempts[key] = a
	}
	return a
}
