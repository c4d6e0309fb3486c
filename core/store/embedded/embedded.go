// Package embedded is the default store: Pebble in the scheduler's data
// folder. Concurrent batches share one fdatasync.
package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/core/store"
)

// Small on purpose: the scheduler keeps live jobs in its own memory and reads
// finished ones rarely.
const (
	cacheBytes    = 8 << 20 // of blocks; Pebble takes its memtables from the same sum
	memtableBytes = 4 << 20
	memtables     = 4 // before writers wait
	maxFiles      = 256
	// bloomBits makes look-ups of keys that do not exist (most request ids) cost
	// no read of a block.
	bloomBits = 10
)

const opOpen = "open the store"

// Store implements store.Store.
type Store struct {
	db      *pebble.DB
	lock    *pebble.Lock
	room    *room
	witness *witness

	mu     sync.RWMutex // held for reading by every call, for writing by Close
	closed bool

	// order is held for writing by a batch with guards, from their check to its
	// end, and for reading by others: those go on sharing a sync.
	order sync.RWMutex
}

// Open opens or makes the store in dir. A second process is refused with
// reason STORE_LOCKED.
func Open(dir string, log *slog.Logger) (*Store, error) {
	return open(dir, log, vfs.Default)
}

func open(dir string, log *slog.Logger, fs vfs.FS) (*Store, error) {
	lock, err := lockStore(dir, fs)
	if err != nil {
		return nil, err
	}
	if err := checkMarker(dir, fs); err != nil {
		return nil, errs.E(opOpen, errs.Internal, "STORE", errors.Join(err, lock.Close())).
			WithHint("restore the folder from a backup")
	}
	witness, err := testify(dir, fs, log)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	room, fs := watch(dir, fs, log)
	db, err := pebble.Open(dir, options(lock, log, witnessed{fs, witness}))
	if err != nil {
		return nil, errs.E(opOpen, errs.Internal, "STORE", errors.Join(fmt.Errorf("read %s: %w", dir, nameMarker(dir, err)), witness.close(), lock.Close())).
			WithHint("restore a backup, or begin anew in another folder with --data")
	}
	return &Store{db: db, lock: lock, room: room, witness: witness}, nil
}

// testify opens the witness of a store, and hears it: P1, P15, acknowledged
// records that are gone are told before anything relies on the rest.
func testify(dir string, fs vfs.FS, log *slog.Logger) (*witness, error) {
	w, err := openWitness(dir, fs, log)
	if err != nil {
		return nil, errs.E(opOpen, errs.Precondition, "STORE_FOLDER", err).
			WithHint("choose a folder that this user may write with --data")
	}
	d, err := examine(dir, fs, w.last)
	if d != nil {
		err = d.err(dir)
	} else if err != nil {
		err = errs.E(opOpen, errs.Internal, "STORE", fmt.Errorf("read the log: %w", err))
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// lockStore makes the folder, if need be, and keeps others away.
func lockStore(dir string, fs vfs.FS) (*pebble.Lock, error) {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.E(opOpen, errs.Precondition, "STORE_FOLDER", fmt.Errorf("make its folder: %w", err)).
			WithHint("choose a folder that this user may write with --data")
	}
	lock, err := lockFolder(dir, fs)
	if file := (*os.PathError)(nil); errors.As(err, &file) {
		return nil, errs.E(opOpen, errs.Precondition, "STORE_FOLDER", fmt.Errorf("use the folder: %w", err)).
			WithHint("run as the user that owns it, or choose another folder with --data")
	}
	if err != nil {
		return nil, errs.E(opOpen, errs.Precondition, "STORE_LOCKED", fmt.Errorf("%s is used by another scheduler: %w", dir, err)).
			WithHint("stop that one first, or choose another folder with --data")
	}
	return lock, nil
}

func lockFolder(dir string, fs vfs.FS) (lock *pebble.Lock, err error) {
	err = lifecycle.Inherit(syscall.EAGAIN, func() error {
		lock, err = pebble.LockDirectory(dir, fs)
		return err
	})
	return lock, err
}

func options(lock *pebble.Lock, log *slog.Logger, fs vfs.FS) *pebble.Options {
	o := &pebble.Options{
		FS: fs, Lock: lock, CacheSize: cacheBytes + memtables*memtableBytes, MemTableSize: memtableBytes, MemTableStopWritesThreshold: memtables,
		MaxOpenFiles: maxFiles, Logger: logger{log}, FormatMajorVersion: pebble.FormatNewest,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits)
	}
	return o
}

// enter keeps Close away while a call is under way.
func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return nil, store.ErrClosed
	}
	return s.mu.RUnlock, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key []byte) ([]byte, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	// Pebble's own Get leaves out the filters of the last level, where most records
	// are, and reads a block there for a key that does not exist.
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return nil, fmt.Errorf("read the store: %w", err)
	}
	var found []byte
	exists := it.SeekPrefixGE(key) && bytes.Equal(it.Key(), key)
	if exists {
		found = bytes.Clone(it.Value())
	}
	if err := it.Close(); err != nil {
		return nil, fmt.Errorf("read the store: %w", err)
	}
	if !exists {
		return nil, store.ErrNotFound
	}
	return found, nil
}

// Scan implements store.Store.
func (s *Store) Scan(ctx context.Context, r store.Range) iter.Seq2[store.Pair, error] {
	return func(yield func(store.Pair, error) bool) {
		leave, err := s.enter(ctx)
		if err != nil {
			yield(store.Pair{}, err)
			return
		}
		defer leave()
		it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: r.From, UpperBound: r.To})
		if err != nil {
			yield(store.Pair{}, fmt.Errorf("read the store: %w", err))
			return
		}
		defer func() { _ = it.Close() }()
		first, next := it.First, it.Next
		if r.Reverse {
			first, next = it.Last, it.Prev
		}
		for ok := first(); ok; ok = next() {
			if err := ctx.Err(); err != nil {
				yield(store.Pair{}, err)
				return
			}
			if !yield(store.Pair{Key: bytes.Clone(it.Key()), Value: bytes.Clone(it.Value())}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(store.Pair{}, fmt.Errorf("read the store: %w", err))
		}
	}
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	batch := s.db.NewBatchWithSize(1 << 10)
	defer func() { _ = batch.Close() }()
	for _, op := range b.Ops {
		switch {
		case op.To != nil:
			err = batch.DeleteRange(op.Key, op.To, nil)
		case op.Delete:
			err = batch.Delete(op.Key, nil)
		default:
			err = batch.Set(op.Key, op.Value, nil)
		}
		if err != nil {
			return fmt.Errorf("build a batch: %w", err)
		}
	}
	return s.commit(batch, b.Guards)
}

func (s *Store) commit(batch *pebble.Batch, guards []store.Guard) error {
	if len(guards) == 0 {
		s.order.RLock()
		defer s.order.RUnlock()
	} else {
		s.order.Lock()
		defer s.order.Unlock()
	}
	for _, g := range guards {
		if err := s.check(g); err != nil {
			return err
		}
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("write the store: %w", err)
	}
	return nil
}

func (s *Store) check(g store.Guard) error {
	v, closer, err := s.db.Get(g.Key)
	if errors.Is(err, pebble.ErrNotFound) {
		if !g.Holds(nil, false) {
			return store.ErrFenced
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	defer closer.Close()
	if !g.Holds(v, true) {
		return store.ErrFenced
	}
	return nil
}

// Checkpoint copies the store as it is now into a new folder, by links where
// it can, while it goes on.
func (s *Store) Checkpoint(ctx context.Context, dir string) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return fmt.Errorf("copy the store to %s: %w", dir, err)
	}
	return nil
}

// Close implements store.Store. A second Close does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := errors.Join(s.db.Close(), s.witness.close(), s.lock.Close()); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

// logger lets Pebble speak through slog; its chatter is debug.
type logger struct{ log *slog.Logger }

// Infof implements pebble.Logger.
func (l logger) Infof(format string, args ...any) {
	l.log.Debug("store", "text", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("store", "text", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. Pebble calls it when going on would damage
// data, so the process must not go on.
func (l logger) Fatalf(format string, args ...any) {
	l.log.Error("store cannot go on", "text", fmt.Sprintf(format, args...))
	panic("unreachable: the store cannot go on without losing data")
}
