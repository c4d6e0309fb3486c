package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
)

// ReasonDamaged is the reason of Open's error when acknowledged records cannot be
// read any more.
const ReasonDamaged = "STORE_DAMAGED"

const (
	witnessFile  = "synced"
	witnessMagic = "drover w"
	slotBytes    = 40      // magic, sequence, log, offset, checksum of the former and 4 bytes of nothing
	slotApart    = 4 << 10 // two slots never share a page
	// witnessSync is how long the disk may be behind the page cache with what the
	// witness says. Only a power cut makes that matter.
	witnessSync = 100 * time.Millisecond

	logSuffix = ".log"
)

// mark says up to where a log of Pebble was synced: what is acknowledged.
type mark struct {
	sequence uint64
	log      uint64 // number of its file
	offset   uint64
}

func (m mark) encode() []byte {
	b := append(make([]byte, 0, slotBytes), witnessMagic...)
	for _, v := range []uint64{m.sequence, m.log, m.offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, 0, 0, 0, 0)
}

func decodeMark(b []byte) (m mark, ok bool) {
	const sum = slotBytes - 8
	if len(b) < slotBytes || string(b[:8]) != witnessMagic ||
		crc32.Checksum(b[:sum], castagnoli) != binary.LittleEndian.Uint32(b[sum:]) {
		return mark{}, false
	}
	return mark{
		binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:]),
	}, true
}

// witness keeps in a file of its own how far the newest log was synced, so that a
// log that ends earlier is known to have lost acknowledged records (P1). It is
// written after each sync and before anybody is told of it, without a sync of its
// own: a kill leaves it exact, and a power cut at most a moment behind, where it
// claims too little and never too much.
type witness struct {
	fs   vfs.FS
	dir  string
	file vfs.File
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	last   mark
	armed  bool // a sync is due
	closed bool
	failed bool
}

// openWitness opens or makes the witness of a store.
func openWitness(dir string, fs vfs.FS, log *slog.Logger) (*witness, error) {
	path := fs.PathJoin(dir, witnessFile)
	w := &witness{fs: fs, dir: dir, log: log}
	last, found, err := readMark(path, fs)
	if err != nil {
		return nil, err
	}
	if w.last = last; !found {
		if err := writeFile(path, make([]byte, slotApart+slotBytes), fs); err != nil { // its room is taken here and not later
			return nil, err
		}
	}
	if w.file, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return nil, err
	}
	return w, nil
}

// readMark returns the newer one of the two marks. A file that holds none is as
// good as none: it is a witness, not a record.
func readMark(path string, fs vfs.FS) (m mark, found bool, err error) {
	b, err := readFile(path, fs)
	if errors.Is(err, iofs.ErrNotExist) {
		return mark{}, false, nil
	}
	if err != nil {
		return mark{}, false, err
	}
	for _, at := range []int{0, slotApart} {
		if at > len(b) {
			break
		}
		if got, ok := decodeMark(b[at:]); ok && (!found || got.sequence > m.sequence) {
			m, found = got, true
		}
	}
	return m, found, nil
}

// synced takes down that a log was synced up to an offset.
func (w *witness) synced(log, offset uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || log < w.last.log || log == w.last.log && offset <= w.last.offset {
		return
	}
	w.last = mark{w.last.sequence + 1, log, offset}
	if _, err := w.file.WriteAt(w.last.encode(), int64(w.last.sequence%2)*slotApart); err != nil {
		w.fail(err)
		return
	}
	if !w.armed {
		w.armed = true
		time.AfterFunc(witnessSync, w.flush)
	}
}

// fail tells once that less damage will be noticed. What is recorded is not in danger.
func (w *witness) fail(err error) {
	if !w.failed {
		w.failed = true
		w.log.Error("cannot write how far the store is synced; damage at the end of its log may go unnoticed", "file", w.fs.PathJoin(w.dir, witnessFile), "error", err)
	}
}

func (w *witness) flush() {
	w.mu.Lock()
	w.armed = false
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	// Writers go on meanwhile; Close waits for nothing here: its own sync comes after
	// the last mark, and a closed file makes this one fail.
	if err := w.file.SyncData(); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.closed {
			w.fail(err)
		}
	}
}

func (w *witness) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	return errors.Join(w.file.SyncData(), w.file.Close())
}

// damage is what is wrong with the newest log of a store.
type damage struct {
	path string
	log  uint64
	good int    // up to where it can be read
	lost uint64 // bytes behind that were acknowledged, as far as is known
	gone bool   // there is no such file
}

func (d *damage) err(dir string) error {
	why := fmt.Errorf("%s is damaged at byte %d: %d bytes or more of acknowledged records cannot be read", d.path, d.good, d.lost)
	if d.gone {
		why = fmt.Errorf("%s is missing: %d bytes or more of acknowledged records are gone", d.path, d.lost)
	}
	return errs.E(opOpen, errs.Precondition, ReasonDamaged, why).
		WithHint("restore a backup into another folder with \"drover scheduler restore\", or go on without what is lost: drover store salvage %s", filepath.Dir(dir))
}

// examine looks for acknowledged records that are gone from the end of the newest
// log: the witness, or what was written later, says that they were synced. A tail
// that nobody was told of may be torn. Older logs are Pebble's to check: it ends
// them in good order.
func examine(dir string, fs vfs.FS, last mark) (*damage, error) {
	logs, err := logsOf(dir, fs)
	if err != nil {
		return nil, err
	}
	newest := uint64(0)
	if len(logs) > 0 {
		newest = logs[len(logs)-1]
	}
	if last.offset > 0 && !slices.Contains(logs, last.log) && newest < last.log {
		return &damage{path: logPath(dir, fs, last.log), log: last.log, lost: last.offset, gone: true}, nil
	}
	for _, log := range logs[max(0, len(logs)-2):] {
		if log != newest && log != last.log {
			continue
		}
		claim := uint64(0)
		if log == last.log {
			claim = last.offset
		}
		if d, err := examineLog(dir, fs, log, claim, log == newest); d != nil || err != nil {
			return d, err
		}
	}
	return nil, nil
}

func examineLog(dir string, fs vfs.FS, log, claim uint64, open bool) (*damage, error) {
	path := logPath(dir, fs, log)
	b, err := readFile(path, fs)
	if err != nil {
		return nil, err
	}
	good, closed := soundPrefix(b, uint32(log))
	if !closed && open {
		claim = max(claim, promised(b, uint32(log), good))
	}
	// Less than a chunk is the mark of a log's end, which holds no record.
	if claim < uint64(good)+promiseHeader {
		return nil, nil
	}
	return &damage{path: path, log: log, good: good, lost: claim - uint64(good)}, nil
}

func logPath(dir string, fs vfs.FS, log uint64) string {
	return fs.PathJoin(dir, fmt.Sprintf("%06d%s", log, logSuffix))
}

// logNumber is the number of a log, by its name.
func logNumber(name string) (number uint64, ok bool) {
	text, ok := strings.CutSuffix(name, logSuffix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(text, 10, 64)
	return number, err == nil
}

func logsOf(dir string, fs vfs.FS) ([]uint64, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	var logs []uint64
	for _, name := range names {
		if n, ok := logNumber(name); ok {
			logs = append(logs, n)
		}
	}
	slices.Sort(logs)
	return logs, nil
}

func readFile(path string, fs vfs.FS) (b []byte, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(f)
}

// writeFile makes a file whole or not at all.
func writeFile(path string, b []byte, fs vfs.FS) error {
	part := path + ".new"
	f, err := fs.Create(part, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, fs.Remove(part))
	}
	if err := fs.Rename(part, path); err != nil {
		return err
	}
	return syncFolder(fs.PathDir(path), fs)
}

func syncFolder(dir string, fs vfs.FS) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// witnessed is the file system of Pebble, with a witness for its logs.
type witnessed struct {
	vfs.FS
	witness *witness
}

// Create implements vfs.FS.
func (w witnessed) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.Create(name, c)
	return w.wrap(name, f, err)
}

// ReuseForWrite implements vfs.FS.
func (w witnessed) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.ReuseForWrite(from, to, c)
	return w.wrap(to, f, err)
}

func (w witnessed) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if n, ok := logNumber(w.PathBase(name)); err == nil && ok && w.PathDir(name) == w.PathDir(w.PathJoin(w.witness.dir, "x")) {
		return &logFile{File: f, witness: w.witness, number: n}, nil
	}
	return f, err
}

// logFile is a log that is being written.
type logFile struct {
	vfs.File
	witness *witness
	number  uint64
	written atomic.Uint64
}

// Write implements vfs.File.
func (f *logFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.written.Add(uint64(n))
	return n, err
}

// Sync implements vfs.File.
func (f *logFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData implements vfs.File.
func (f *logFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *logFile) sync(sync func() error) error {
	written := f.written.Load()
	if err := sync(); err != nil {
		return err
	}
	f.witness.synced(f.number, written)
	return nil
}
