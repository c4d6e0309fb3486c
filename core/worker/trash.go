package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
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
	trashAtOnce   = 100 * time.Millisecond // for a tree when its attempt ends
	trashSlice    = 200 * time.Millisecond // for each tree in a round
	trashPause    = 200 * time.Millisecond // between rounds while something goes
	trashLast     = time.Second            // for the last round, when the worker ends
	stuckFirst    = time.Second            // until a tree of which nothing goes is tried again; doubled each time
	stuckRarely   = time.Hour              // at the longest
	stuckPatience = 5 * time.Second        // for a slice of such a tree: what would go may come last
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

	mu    sync.Mutex       // guards stuck
	stuck map[string]stuck // trees of which nothing went the last time, by name
}

// stuck is why nothing of a tree goes, and when it is tried again: ever more rarely, for
// somebody may have left a lot that withstands.
type stuck struct {
	err   error
	since time.Time
	next  time.Time
	pause time.Duration // before next
	slice time.Duration // to spend then
}

func newTrash(dir string, log *slog.Logger) *trash {
	return &trash{dir: dir, log: log, wake: make(chan struct{}, 1), stuck: map[string]stuck{}}
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
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
		case <-timer.C:
		case <-ctx.Done():
			t.last(ctx)
			return
		}
		goes, err := t.round(ctx)
		switch next := t.next(); {
		case goes:
			timer.Reset(trashPause)
		case err != nil: // the folder cannot be listed
			timer.Reset(stuckRarely)
		case !next.IsZero():
			timer.Reset(time.Until(next))
		default:
			timer.Stop()
		}
	}
}

// last makes the last round: what it leaves waits for the next life of the worker.
func (t *trash) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), trashLast)
	defer cancel()
	_, _ = t.round(ctx) // what it does not do is seen in the folder
	if left, err := os.ReadDir(t.dir); err != nil || len(left) > 0 {
		t.log.Warn("files of attempts are left for the next start", "path", t.dir, "attempts", len(left))
	}
}

// round spends a slice on each tree whose turn it is. goes tells that time was all that
// was missing for one.
func (t *trash) round(ctx context.Context) (goes bool, err error) {
	all, err := os.ReadDir(t.dir)
	if err != nil {
		t.log.Error("what attempts have left cannot be listed", "path", t.dir, "error", err)
		return false, fmt.Errorf("list what attempts have left: %w", err)
	}
	there := make(map[string]bool, len(all))
	for _, e := range all {
		there[e.Name()] = true
		was, slice := t.before(e.Name())
		if time.Now().Before(was.next) {
			continue
		}
		err := removeIn(ctx, t.dir, e.Name(), slice)
		if err == nil || advances(err) || ctx.Err() != nil {
			goes = goes || err != nil
			delete(there, e.Name()) // it is stuck no more
			continue
		}
		t.note(e.Name(), was, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.stuck, func(name string, _ stuck) bool { return !there[name] })
	return goes, nil
}

// advances tells whether a removal that ran out of time has removed anything: the next
// one will remove more.
func advances(err error) bool {
	var left *foreign.Remains
	return errors.Is(err, foreign.ErrUnfinished) && errors.As(err, &left) && left.Removed > 0
}

// before returns what is known of a tree, and how long to try.
func (t *trash) before(name string) (stuck, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.stuck[name]
	return was, max(trashSlice, was.slice)
}

// note remembers that nothing of a tree goes. It is logged once.
func (t *trash) note(name string, was stuck, err error) {
	now := time.Now()
	is := stuck{err: err, since: was.since, pause: stuckFirst, slice: 2 * trashSlice}
	if was.err == nil {
		is.since = now
		t.log.Warn("files of an attempt cannot be removed; tried again ever more rarely", "path", filepath.Join(t.dir, name), "error", err)
	} else {
		is.pause, is.slice = min(2*was.pause, stuckRarely), min(2*was.slice, stuckPatience)
	}
	is.next = now.Add(is.pause)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stuck[name] = is
}

// next is when a stuck tree is tried again; zero when there is none.
func (t *trash) next() (soonest time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.stuck {
		if soonest.IsZero() || s.next.Before(soonest) {
			soonest = s.next
		}
	}
	return soonest
}

// conditions tells of what cannot be removed.
func (t *trash) conditions() []job.Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stuck) == 0 {
		return nil
	}
	var first stuck
	for _, s := range t.stuck {
		if first.err == nil || s.since.Before(first.since) {
			first = s
		}
	}
	return []job.Condition{{Type: conditionFiles, Message: fmt.Sprintf("of %d attempts: %v", len(t.stuck), first.err), Since: first.since}}
}
