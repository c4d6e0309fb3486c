package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/foreign"
)

// Times of the removal of what attempts leave.
const (
	trashAtOnce  = 100 * time.Millisecond // for a tree when its attempt ends
	trashSlice   = 200 * time.Millisecond // for each tree in a round
	trashPause   = 200 * time.Millisecond // between rounds while something goes
	trashLongest = time.Minute            // between rounds when nothing goes
	trashLast    = time.Second            // for the last round, when the worker ends
)

// conditionFiles tells of files of attempts that cannot be removed.
const conditionFiles = "ATTEMPT_FILES"

// trash is a folder with what attempts have left. Jobs may have put any tree there, and
// may still be writing to it: it is removed a slice at a time, for as long as it takes,
// and nobody waits for it (P17).
type trash struct {
	dir  string
	log  *slog.Logger
	wake chan struct{} // capacity 1: there is something new

	mu    sync.Mutex // guards the fields below
	left  error      // of the last round; nil: it left nothing, or goes on
	since time.Time  // left is not nil
}

func newTrash(dir string, log *slog.Logger) *trash {
	return &trash{dir: dir, log: log, wake: make(chan struct{}, 1)}
}

// take removes a tree at once if that is quickly done, and else has it removed later.
func (t *trash) take(path string) error {
	name, err := t.move(path)
	switch {
	case err != nil: // a full disk, perhaps: then where it is
		if removeIn(context.Background(), filepath.Dir(path), filepath.Base(path), trashAtOnce) == nil {
			return nil
		}
		return err
	case name == "":
		return nil
	}
	if err := removeIn(context.Background(), t.dir, name, trashAtOnce); err != nil {
		t.poke()
	}
	return nil
}

// poke starts a round.
func (t *trash) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// move puts a tree into the trash under a name of its own: it is out of the way of
// whoever makes the same folder again. The name is "" when there is nothing.
func (t *trash) move(path string) (name string, err error) {
	name = filepath.Base(path) + "." + strconv.FormatUint(rand.Uint64(), 36)
	err = os.Rename(path, filepath.Join(t.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return name, err
}

func removeIn(ctx context.Context, dir, name string, patience time.Duration) error {
	parent, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(parent) //nolint:errcheck // nothing can be written to it
	return foreign.Remove(ctx, parent, name, patience)
}

// run removes what is there, and what comes, until the context ends.
func (t *trash) run(ctx context.Context) {
	pause := trashPause
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
			pause = trashPause
		case <-timer.C:
		case <-ctx.Done():
			t.last(ctx)
			return
		}
		goes, err := t.round(ctx)
		t.note(err)
		switch {
		case goes:
			pause = trashPause
			timer.Reset(pause)
		case err != nil:
			timer.Reset(pause)
			pause = min(2*pause, trashLongest)
		default:
			timer.Stop()
		}
	}
}

// last makes the last round: what it leaves waits for the next life of the worker.
func (t *trash) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), trashLast)
	defer cancel()
	if goes, err := t.round(ctx); goes || err != nil {
		t.log.Warn("files of attempts are left for the next start", "path", t.dir, "error", err)
	}
}

// round spends a slice on each tree. goes tells that time was all that was missing for
// one; the error tells what cannot go.
func (t *trash) round(ctx context.Context) (goes bool, stuck error) {
	all, err := os.ReadDir(t.dir)
	if err != nil {
		return false, fmt.Errorf("list what attempts have left: %w", err)
	}
	trees := 0
	for _, e := range all {
		err := removeIn(ctx, t.dir, e.Name(), trashSlice)
		switch {
		case err == nil:
		case errors.Is(err, foreign.ErrUnfinished):
			goes = true
		default:
			if trees++; stuck == nil {
				stuck = err
			}
		}
	}
	if stuck != nil {
		stuck = fmt.Errorf("of %d attempts: %w", trees, stuck)
	}
	return goes, stuck
}

// note logs what cannot go, once until it changes.
func (t *trash) note(err error) {
	t.mu.Lock()
	was := t.left
	t.left = err
	if was == nil {
		t.since = time.Now()
	}
	t.mu.Unlock()
	if err != nil && (was == nil || was.Error() != err.Error()) {
		t.log.Warn("files of attempts cannot be removed; tried again every minute", "path", t.dir, "error", err)
	}
}

// conditions tells of what cannot be removed.
func (t *trash) conditions() []job.Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left == nil {
		return nil
	}
	return []job.Condition{{Type: conditionFiles, Message: t.left.Error(), Since: t.since}}
}
