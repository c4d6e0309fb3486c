// Package journal keeps a worker's append-only record of what it decided about
// attempts: intents before processes, stops before signals, results before
// acknowledgements. Records are framed with length and checksum and appended by
// write(2), which survives kill -9 of the worker; a changed boot id settles what
// a power loss took.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/failpoint"
)

// Reasons of the errors of this package.
const (
	ReasonLocked  = "JOURNAL_LOCKED"  // another process holds the journal
	ReasonCorrupt = "JOURNAL_CORRUPT" // damage that is not a torn tail
	ReasonWrite   = "JOURNAL_WRITE"   // the disk refused a batch; nothing of it is kept
)

const (
	magic          = "DRVJRNL1"
	frameHead      = 8       // length and CRC-32C, little endian
	maxRecord      = 8 << 20 // a frame that claims more is damage
	defaultCompact = 32 << 20
	reserveStep    = 4 << 20
	reserveLow     = 1 << 20
)

// Config says where a journal lies. Only Path is needed.
type Config struct {
	Path    string       // the journal file; Path.lock, Path.size and Path.new lie beside it
	Boot    string       // identity of the host's boot; "": every boot is the same
	Log     *slog.Logger // nil: slog.Default
	Compact int64        // dead bytes before a rewrite is considered; 0: 32 MiB

	open func(path string) (file, error) // seam for faults; nil: os
}

// file is what a journal needs of an *os.File.
type file interface {
	Write(p []byte) (int, error)
	ReadAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Fd() uintptr
	Close() error
}

// Journal is an open journal. Its methods may be called from any goroutine;
// one writer at a time is let through.
type Journal struct {
	path    string
	log     *slog.Logger
	compact int64
	open    func(string) (file, error)
	lock    *os.File
	mark    *mark

	mu       sync.Mutex // guards all below; held during the write, which is the point
	f        file
	size     int64 // bytes known good
	synced   int64 // of these on the disk
	reserved int64 // bytes the file system has promised
	dead     int64 // bytes of frames that no live attempt needs
	torn     bool  // a partial batch lies behind size
	unsynced bool  // a sync failed: a raised term may not be on the disk
	index    index
	buf      []byte
}

// Open opens or creates the journal and reads what it holds. A torn tail is cut
// off with a log line; other damage is an error of reason JOURNAL_CORRUPT,
// because an intent that is silently forgotten could run twice (P2). A journal
// that another process holds is refused with JOURNAL_LOCKED.
func Open(c Config) (*Journal, *State, error) {
	const op = "open journal"
	j := &Journal{path: c.Path, log: c.Log, compact: c.Compact, open: c.open}
	if j.log == nil {
		j.log = slog.Default()
	}
	if j.compact == 0 {
		j.compact = failpoint.Sooner[int64](defaultCompact, 1<<10)
	}
	if j.open == nil {
		j.open = openFile
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, nil, errs.E(op, errs.Internal, ReasonWrite, fmt.Errorf("make its folder: %w", err))
	}
	lock, err := takeLock(c.Path + ".lock")
	if err != nil {
		return nil, nil, err
	}
	j.lock = lock
	mark, least, err := openMark(c.Path+".size", c.Boot)
	if err != nil {
		_ = letGo(lock)
		return nil, nil, errs.E(op, errs.Precondition, ReasonWrite, err).WithHint("move it away; the journal beside it is not touched")
	}
	j.mark = mark
	state, err := j.load(least)
	if err != nil {
		_ = mark.close()
		_ = letGo(lock) // that of the journal is the error to tell
		return nil, nil, err
	}
	return j, state, nil
}

func openFile(path string) (file, error) {
	// O_APPEND: after a cut, the next write lands at the new end by itself.
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
}

// takeLock takes the lock file. It is a file of its own because compaction
// replaces the journal's inode, and flock(2) belongs to an inode.
func takeLock(path string) (*os.File, error) {
	const op = "lock journal"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.E(op, errs.Internal, ReasonWrite, err).WithHint("move away what lies there; the file holds nothing that is needed")
	}
	err = lifecycle.Inherit(unix.EAGAIN, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		return nil, errs.E(op, errs.Precondition, ReasonLocked,
			fmt.Errorf("%s is held by another worker process (pid %s): %w", path, holder[:n], err)).
			WithHint("stop that worker, or give this one its own --data folder")
	}
	pid := fmt.Sprintf("%d", os.Getpid())
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(pid), 0)
		if err != nil {
			// The number is for people only; the lock itself is held.
			slog.Debug("lock file keeps an old pid", "path", path, "error", err)
		}
	}
	return f, nil
}

// letGo gives the lock back at once: without that, a process that is just being
// forked would keep it until it executes its program.
func letGo(lock *os.File) error {
	return errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close())
}

// Append writes the records as one write(2): either all of them are in the
// journal when it returns nil, or none is. A record that raises the term (P3) or
// the epoch is also synced to the disk: neither may fall back with a power loss,
// or orders and reports would look older than they are. It may rewrite the file
// when most of it is dead.
func (j *Journal) Append(records ...Record) error {
	if len(records) == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.buf = j.buf[:0]
	ends := make([]int, 0, len(records))
	for i := range records {
		j.buf = appendFrame(j.buf, &records[i])
		ends = append(ends, len(j.buf))
	}
	j.reserve(int64(len(j.buf)))
	if err := j.write(j.buf); err != nil {
		return err
	}
	term, epoch := j.index.fence.Term, j.index.epoch
	start := 0
	for i := range records {
		at := ref{off: j.size + int64(start), n: int64(ends[i] - start)}
		j.dead += j.index.add(&records[i], at)
		start = ends[i]
	}
	j.size += int64(len(j.buf))
	if j.index.fence.Term > term || j.index.epoch > epoch || j.unsynced {
		if err := j.sync(); err != nil {
			return errs.E("append to journal", errs.Internal, ReasonWrite, fmt.Errorf("sync a raised term or epoch: %w", err))
		}
	}
	j.noteLength()
	if j.dead > j.compact && j.dead > failpoint.Sooner(j.size-j.dead, 0) {
		// A rewrite that goes wrong leaves the old file in use and whole.
		if err := j.rewrite(); err != nil {
			j.log.Warn("journal not compacted", "path", j.path, "error", err)
		}
	}
	return nil
}

// sync brings the journal to the disk. After a sync that failed the kernel holds
// pages for clean that are not (fsync(2)), and only a new file can be trusted.
func (j *Journal) sync() error {
	if j.unsynced {
		return j.rewrite()
	}
	err := j.f.Sync()
	j.unsynced = err != nil
	if err == nil {
		j.synced = j.size
	}
	return err
}

// noteLength tells the mark. One that is behind notices less.
func (j *Journal) noteLength() {
	if err := j.mark.write(lengths{j.size, min(j.synced, j.size)}); err != nil {
		j.log.Warn("the length of the journal is not noted; a loss of its end would not be noticed", "path", j.path, "err", err)
	}
}

// write puts p at the end, or restores the end when only a part went in.
func (j *Journal) write(p []byte) error {
	const op = "append to journal"
	if j.torn {
		if err := j.cut(); err != nil {
			return errs.E(op, errs.Exhausted, ReasonWrite, err)
		}
	}
	n, err := j.f.Write(p)
	if err == nil {
		return nil
	}
	if n > 0 {
		err = errors.Join(err, j.cut())
	}
	return errs.E(op, errs.Exhausted, ReasonWrite, err)
}

// cut removes a partial batch. Until it is gone nothing may follow it: whole
// records behind half a one are damage to whoever reads the file.
func (j *Journal) cut() error {
	j.torn = true
	if err := j.f.Truncate(j.size); err != nil {
		return fmt.Errorf("cut the partial batch: %w", err)
	}
	j.torn, j.reserved = false, j.size
	return nil
}

// reserve keeps blocks ahead of the end, so that stops and results can still be
// written while jobs have filled the disk (P8: reported before bytes are lost).
// A file system that cannot or will not reserve is no error: writes then decide.
func (j *Journal) reserve(next int64) {
	if j.size+next+reserveLow <= j.reserved {
		return
	}
	from := max(j.reserved, j.size)
	if err := unix.Fallocate(int(j.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, from, reserveStep); err == nil {
		j.reserved = from + reserveStep
	}
}

// Compact rewrites the journal with the live records only, synced before it
// replaces the old file.
func (j *Journal) Compact() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rewrite()
}

// Size returns the bytes of the journal and how many of them are dead.
func (j *Journal) Size() (total, dead int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size, j.dead
}

// Close releases the file and the lock. Nothing is buffered.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.f.Close(), j.mark.close(), letGo(j.lock))
}

// rewrite copies the live frames into Path.new and renames it over Path.
func (j *Journal) rewrite() error {
	const op = "compact journal"
	next := j.path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.E(op, errs.Internal, ReasonWrite, err)
	}
	f, err := j.open(next)
	if err != nil {
		return errs.E(op, errs.Internal, ReasonWrite, err)
	}
	live, size, err := j.copyLive(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		failpoint.At(failpoint.WorkerCompactBefore)
		// From here on the journal may be either file.
		least := min(size, j.synced)
		err = j.mark.write(lengths{least, least})
	}
	if err == nil {
		err = os.Rename(next, j.path)
	}
	if err != nil {
		return errs.E(op, errs.Internal, ReasonWrite, errors.Join(err, f.Close(), os.Remove(next)))
	}
	if err := durable.SyncFolder(filepath.Dir(j.path)); err != nil {
		j.log.Warn("journal folder not synced", "path", j.path, "error", err)
	}
	if err := j.f.Close(); err != nil {
		j.log.Warn("old journal not closed", "path", j.path, "error", err)
	}
	failpoint.At(failpoint.WorkerCompactAfter)
	j.f, j.index, j.size, j.reserved, j.dead = f, live, size, size, 0
	j.torn, j.unsynced, j.synced = false, false, size
	j.noteLength()
	return nil
}

// copyLive writes the header, the fences and every live frame to f, in the
// order of the old file, and returns where they are now.
func (j *Journal) copyLive(f file) (index, int64, error) {
	out := append([]byte(nil), magic...)
	live := newIndex()
	head := Record{Kind: KindFence, Fence: j.index.fence, Floor: j.index.floor, Epoch: j.index.epoch, Lease: j.index.lease, Life: j.index.life}
	mark := len(out)
	out = appendFrame(out, &head)
	live.add(&head, ref{off: int64(mark), n: int64(len(out) - mark)})
	live.attempts = make(map[job.Key]*entry, len(j.index.attempts))

	type move struct {
		from ref
		to   *ref
	}
	var moves []move
	for key, old := range j.index.attempts {
		fresh := &entry{}
		live.attempts[key] = fresh
		for i := range old.refs {
			if old.refs[i].n > 0 {
				moves = append(moves, move{old.refs[i], &fresh.refs[i]})
			}
		}
	}
	slices.SortFunc(moves, func(a, b move) int { return int(a.from.off - b.from.off) })
	written := int64(0)
	for _, m := range moves {
		start := len(out)
		out = slices.Grow(out, int(m.from.n))[:start+int(m.from.n)]
		if _, err := j.f.ReadAt(out[start:], m.from.off); err != nil {
			return live, 0, fmt.Errorf("read live record at %d: %w", m.from.off, err)
		}
		*m.to = ref{off: written + int64(start), n: m.from.n}
		if len(out) >= reserveLow {
			if _, err := f.Write(out); err != nil {
				return live, 0, fmt.Errorf("write live records: %w", err)
			}
			written += int64(len(out))
			out = out[:0]
		}
	}
	if _, err := f.Write(out); err != nil {
		return live, 0, fmt.Errorf("write live records: %w", err)
	}
	return live, written + int64(len(out)), nil
}

// crcTable is CRC-32C, which the processor computes.
func crcTable() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// appendFrame appends one framed record.
func appendFrame(b []byte, r *Record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendRecord(b, r)
	body := b[start+frameHead:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(body, crcTable()))
	return b
}
