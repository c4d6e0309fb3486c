package output

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/durable"
)

// recovery rebuilds the memory of a store from its index files. A kill of the
// worker leaves them whole; a crash of the host, a full disk or a bad one may
// not. What is not surely a stream's own is declared as lost, never guessed (P8):
// without a later entry nothing tells where the last move of a segment ends.
type recovery struct {
	s       *Store
	doubted uint64               // the newest segment of an earlier boot: the host may have crashed since
	removed map[job.Key]*segment // the segment that says so
	given   map[job.Key]gift     // the same of bytes that were given back
	newest  map[*stream]*piece   // a stream's newest move, whose end is still open
	ends    map[*stream][]extent // entries of sealed streams: no bytes, at their size
	spent   map[*stream][]extent // entries of moves whose bytes were given back: no bytes
}

// gift is an entry that says that the bytes of an attempt were given back.
type gift struct {
	said *segment
	why  reason
}

// piece is a move as its index entry announces it. How much was moved follows
// from the next entry of the segment, and again from the next one of the stream.
type piece struct {
	st     *stream
	seg    *segment
	segOff uint64
	off    uint64
	length uint64 // at the most
	sure   bool   // exactly that
	time   time.Time
}

// recover rebuilds the memory from the indexes.
func (s *Store) recover() error {
	r := &recovery{
		s: s, removed: map[job.Key]*segment{}, given: map[job.Key]gift{}, newest: map[*stream]*piece{}, ends: map[*stream][]extent{}, spent: map[*stream][]extent{},
	}
	mark := filepath.Join(s.config.Dir, "boot")
	last, known := s.lastBoot(mark)
	if r.doubted = last.before; !known || last.boot != s.config.Boot {
		known, r.doubted = false, math.MaxUint64
	}
	segments := filepath.Join(s.config.Dir, "segments")
	files, err := os.ReadDir(segments) // in the order of their numbers
	if err != nil {
		return err
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".seg"); ok {
			if err := r.orphan(filepath.Join(segments, name)); err != nil {
				return err
			}
		}
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".idx"); ok {
			if err := r.segment(filepath.Join(segments, name)); err != nil {
				return err
			}
		}
	}
	s.number = max(s.number, last.before) // no number is ever given again
	r.settleAll()
	for key, grave := range r.removed {
		if a := s.attempts[key]; a != nil {
			s.bury(a, grave)
			s.drop(a)
		}
	}
	for key, a := range s.attempts {
		if a.finished = a.streams[0].sealed && a.streams[1].sealed; a.finished {
			close(a.drained)
			s.age.reach(a.ended)
		}
		if g, ok := r.given[key]; ok && a.finished {
			a.given = g.why
			s.bury(a, g.said)
			s.empty(a)
		}
	}
	for _, seg := range s.segments {
		s.unref(seg) // the reference that held it during recovery
	}
	for _, number := range slices.Sorted(maps.Keys(s.segments)) {
		s.keepNotes(s.segments[number])
	}
	if known {
		return nil
	}
	note := bootNote{before: s.number, boot: s.config.Boot}
	if err := durable.WriteTwice(mark, note.encode(), 0o600); err != nil {
		s.config.Log.Warn("boot of the host not noted", "path", mark, "error", err)
	}
	return nil
}

// bootNote is what the store keeps of the host's boot. It is written once in each: what
// one recovery declares lost stays lost for the next ones.
type bootNote struct {
	before uint64 // the newest segment that was written before this boot
	boot   string // its id
}

// encode begins with the number and ends with a newline: no part of it can be taken for
// the whole.
func (n bootNote) encode() []byte { return fmt.Appendf(nil, "%d %s\n", n.before, n.boot) }

// decode also reads the notes of older versions, which are the id alone.
func (n *bootNote) decode(data []byte) error {
	text := string(data)
	n.before, n.boot = 0, text
	if number, boot, found := strings.Cut(text, " "); found {
		if before, err := strconv.ParseUint(number, 10, 64); err == nil {
			if boot, found = strings.CutSuffix(boot, "\n"); !found {
				return errors.New("it is not whole")
			}
			n.before, n.boot = before, boot
		}
	}
	if n.boot == "" || !utf8.ValidString(n.boot) {
		return errors.New("it is not the id of a boot")
	}
	return nil
}

// lastBoot returns what is noted of the boot in which the store was open before.
func (s *Store) lastBoot(mark string) (last bootNote, known bool) {
	damage, err := durable.ReadTwice(mark, func(data []byte) error {
		err := last.decode(data)
		if err == nil && last.boot != s.config.Boot && strings.HasPrefix(s.config.Boot, last.boot) {
			err = errors.New("it is not the id of a boot")
		}
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bootNote{}, false
	case err != nil:
		s.config.Log.Warn("the boot of the host's last life cannot be read; what was written last counts as lost", "path", mark, "err", err)
		return bootNote{}, false
	case damage != nil:
		s.config.Log.Warn("the file of the host's boot was damaged and is written again from its second copy", "path", mark, "err", damage)
	}
	return last, true
}

// orphan removes a segment without an index: the worker was killed between making, or
// removing, the two files.
func (r *recovery) orphan(path string) error {
	if _, err := os.Stat(path + ".idx"); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.s.config.Log.Info("segment without index removed", "path", path+".seg")
	return os.Remove(path + ".seg")
}

// segment opens the two files of a segment and replays its index.
func (r *recovery) segment(path string) error {
	s := r.s
	var number uint64
	if _, err := fmt.Sscanf(filepath.Base(path), "%d", &number); err != nil {
		return fmt.Errorf("%s is no segment: %w", path, err)
	}
	raw, err := os.ReadFile(path + ".idx")
	if err != nil {
		return err
	}
	// The bytes may be gone with a crash of the host; what is known of them is not.
	raw = raw[:len(raw)/entrySize*entrySize]
	data, err := os.OpenFile(path+".seg", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	index, err := os.OpenFile(path+".idx", os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, data.Close())
	}
	info, err := data.Stat()
	if err != nil {
		return errors.Join(err, data.Close(), index.Close())
	}
	seg := &segment{
		number: number, data: data, index: index, path: path, size: uint64(info.Size()), idxSize: int64(len(raw)), refs: 1,
		spent: spent(raw),
	}
	if seg.spent {
		seg.size = 0
		if err := data.Truncate(0); err != nil {
			return errors.Join(err, data.Close(), index.Close())
		}
	}
	s.segments[number] = seg
	s.number = max(s.number, number)
	s.total += int64(seg.size)
	r.replay(seg, raw)
	return nil
}

// spent tells whether an index says that the bytes of its segment were given back.
func spent(raw []byte) bool {
	if len(raw) < entrySize {
		return false
	}
	e, ok := decodeEntry(raw[len(raw)-entrySize:])
	return ok && e.kind == kindSpent
}

// replay turns index entries back into extents: a move reaches to the next
// move, the last one to the end of the segment.
func (r *recovery) replay(seg *segment, raw []byte) {
	var last *piece
	damaged := 0
	for b := range slices.Chunk(raw, entrySize) {
		e, ok := decodeEntry(b)
		if ok && e.kind == kindMove && last != nil && e.segOff < last.segOff {
			ok = false // segments only grow
		}
		switch {
		case !ok:
			damaged++
			if last != nil {
				last.sure = false // the entry may have been of the move after it
			}
		case e.kind == kindRemoved:
			r.removed[e.key] = seg
		case e.kind == kindGiven:
			r.given[e.key] = gift{seg, reason(e.segOff)}
		case e.kind == kindSpent:
		case e.kind == kindEnd:
			r.end(seg, &e)
		case e.kind == kindSize:
			r.bound(last, e.segOff)
			last = nil
		default:
			r.bound(last, e.segOff)
			last = r.move(seg, &e)
		}
	}
	if last != nil && seg.number <= r.doubted {
		last.sure = false // a later entry may not have come to the disk
	}
	r.bound(last, seg.size)
	if damaged > 0 {
		r.s.config.Log.Warn("output index is damaged", "path", seg.path+".idx", "entries", damaged)
	}
}

// bound tells a piece where the next one of its segment begins. Nothing moves
// more at once than sizes.move, which never becomes less with a version.
func (r *recovery) bound(p *piece, end uint64) {
	if p == nil || end <= p.segOff {
		return
	}
	p.length = end - p.segOff
	if most := r.s.config.sizes.move; p.length > most {
		p.length, p.sure = most, false
	}
}

// move takes an entry of a move up.
func (r *recovery) move(seg *segment, e *entry) *piece {
	a := r.s.recovered(e.key)
	a.note(seg)
	st := a.streams[e.stream-1]
	p := &piece{st: st, seg: seg, segOff: e.segOff, off: e.off, sure: true, time: e.time}
	r.settle(st, e.off)
	if e.off < st.size {
		// Offsets only grow. The bytes that came first stay the ones that count:
		// two reads never disagree.
		r.s.config.Log.Warn("output index contradicts itself", "path", seg.path+".idx", "job", e.key.Job, "offset", e.off)
		return p
	}
	r.newest[st] = p
	return p
}

// end takes up that a stream is sealed.
func (r *recovery) end(seg *segment, e *entry) {
	a := r.s.recovered(e.key)
	a.note(seg)
	policy, ended, cut := unpackEnd(e.segOff)
	a.opts.Policy, a.ended = policy, max(a.ended, ended)
	st := a.streams[e.stream-1]
	st.sealed, st.cut, st.sha256 = true, cut, ""
	if e.sum != [32]byte{} {
		st.sha256 = hex.EncodeToString(e.sum[:])
	}
	r.ends[st] = append(r.ends[st], extent{seg: seg, off: e.off})
	seg.mark()
}

// settle ends a stream's newest piece where the stream goes on.
func (r *recovery) settle(st *stream, next uint64) {
	p := r.newest[st]
	if p == nil {
		return
	}
	delete(r.newest, st)
	if span := max(next, p.off) - p.off; p.length >= span {
		p.length, p.sure = span, true
	}
	r.keep(p)
}

// keep makes a piece readable, as far as its bytes are there and its own.
func (r *recovery) keep(p *piece) {
	if p.seg.spent { // given back on purpose
		p.st.size = max(p.st.size, p.off+p.length)
		r.spent[p.st] = append(r.spent[p.st], extent{seg: p.seg, off: p.off + p.length})
		return
	}
	have := min(p.length, max(p.seg.size, p.segOff)-p.segOff)
	if !p.sure {
		have = 0
	}
	if have > 0 {
		p.st.add(extent{seg: p.seg, segOff: p.segOff, off: p.off, length: have, time: p.time})
	}
	if have < p.length {
		// An extent without bytes holds the entry, so that the next life of the
		// worker knows of the loss too.
		p.st.extents = append(p.st.extents, extent{seg: p.seg, off: p.off + have})
		p.seg.mark()
		p.st.lost = append(p.st.lost, span{p.off + have, p.off + p.length})
		p.st.size = max(p.st.size, p.off+p.length)
	}
}

// settleAll ends every stream: a sealed one at its size.
func (r *recovery) settleAll() {
	for st, ends := range r.ends {
		size := ends[len(ends)-1].off
		r.settle(st, size)
		for i := range st.extents {
			e := &st.extents[i]
			had := e.length
			if e.length = min(e.length, max(size, e.off)-e.off); had > 0 && e.length == 0 {
				e.seg.marks++
			}
		}
		st.size = size
		st.extents = append(st.extents, ends...)
	}
	for _, p := range r.newest {
		r.keep(p)
	}
	for st, moves := range r.spent {
		if st.sealed {
			continue
		}
		// Its end is damaged, and only these say how long it was: they stay for the next
		// life of the worker, as long as the attempt does.
		for _, e := range moves {
			e.seg.mark()
		}
		st.extents = append(st.extents, moves...)
		slices.SortStableFunc(st.extents, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	}
}

func (s *Store) recovered(key job.Key) *attempt {
	a := s.attempts[key]
	if a == nil {
		a = newAttempt(key, Options{})
		s.attempts[key] = a
	}
	return a
}
