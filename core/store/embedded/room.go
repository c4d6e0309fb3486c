package embedded

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
)

// Room that is kept for what was accepted already, on a small file system a tenth
// and a twentieth of it.
const (
	keptRoom   = 64 << 20 // nothing new is accepted below it
	neededRoom = 8 << 20  // a write that found no room is tried again above it
	lookEvery  = 50 * time.Millisecond
)

// room watches the disk of a store. A write that finds no room waits until there is
// some: Pebble would end the process, and what has not been answered yet must be
// neither lost nor answered.
type room struct {
	dir     string
	fs      vfs.FS
	log     *slog.Logger
	waiting atomic.Bool
}

// watch returns the file system for Pebble.
func watch(dir string, fs vfs.FS, log *slog.Logger) (*room, vfs.FS) {
	r := &room{dir: dir, fs: fs, log: log}
	return r, vfs.OnDiskFull(fs, r.await)
}

// free is what is free, and a part of the whole as a bound for small file systems.
func (r *room) free(part uint64) (free, bound uint64, err error) {
	u, err := r.fs.GetDiskUsage(r.dir)
	if err != nil {
		return 0, 0, fmt.Errorf("look how full the disk is: %w", err)
	}
	return u.AvailBytes, u.TotalBytes / part, nil
}

// await holds up every write until there is room, also those of Close: a process that
// is killed meanwhile loses nothing that was answered.
func (r *room) await() {
	r.waiting.Store(true)
	defer r.waiting.Store(false)
	r.log.Error("the store has no room; nothing is recorded or answered until there is", "folder", r.dir)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if free, bound, err := r.free(20); err == nil && free >= min(neededRoom, bound) {
			r.log.Info("the store has room again", "folder", r.dir, "free_bytes", free)
			return
		}
		<-tick.C
	}
}

// Room is an error of kind Exhausted when nothing new should be accepted: what is
// left of the disk is for the results of what was accepted already.
func (s *Store) Room() error {
	free, bound, err := s.room.free(10)
	kept := min(keptRoom, bound)
	if err != nil || free >= kept && !s.room.waiting.Load() {
		return nil //nolint:nilerr // a disk that cannot be asked is found full by the write
	}
	return errs.E("use the store", errs.Exhausted, "STORE_FULL",
		fmt.Errorf("%d MiB are free in %s, and the last %d MiB are kept for jobs that were accepted", free>>20, s.room.dir, kept>>20)).
		WithHint("make room on the scheduler's disk; running jobs go on")
}
