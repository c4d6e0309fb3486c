package scripts

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// glance is how often the folders themselves are looked at: a symbolic link
	// that is turned to another folder gives no event.
	glance = 500 * time.Millisecond
	// blindRescan is Config.Rescan where the kernel gives no events.
	blindRescan = 2 * time.Second
	// duty bounds the share of time spent on looking: 1 in duty.
	duty = 5
	// slowestRetry bounds the growing pause before a file that does not settle, or
	// that somebody keeps open for writing, is looked at again.
	slowestRetry = 250 * time.Millisecond
)

// hints turns file events into hints that something changed. Nothing depends on
// them: inotify does not watch what is below a new folder, does not see a flipped
// symbolic link, and forgets events when its queue is full.
type hints struct {
	watcher *fsnotify.Watcher
	watched map[string]identity
	visited map[string]bool
	sources map[string]bool
	blind   bool
	report  func(error)
}

func newHints(folders []*folder, report func(error)) *hints {
	h := &hints{watched: map[string]identity{}, sources: map[string]bool{}, report: report}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		h.fail(err)
		return h
	}
	h.watcher = w
	for _, f := range folders {
		h.sources[f.source] = true
	}
	return h
}

// fail notes that events are missing from now on, once.
func (h *hints) fail(err error) {
	if !h.blind {
		h.report(err)
	}
	h.blind = true
}

// begin is called before each look, visit for each folder, end after it.
func (h *hints) begin() { h.visited = map[string]bool{} }

func (h *hints) visit(dir string, id identity) {
	h.visited[dir] = true
	if h.watcher == nil || h.watched[dir] == id {
		return
	}
	if _, ok := h.watched[dir]; ok {
		// Another folder has the name now. The watch may be gone with the old one.
		_ = h.watcher.Remove(dir)
	}
	if err := h.watcher.Add(dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			h.fail(err)
		}
		return
	}
	h.watched[dir] = id
}

// end forgets folders that are gone, and watches the parents of the sources.
func (h *hints) end() {
	for source := range h.sources {
		parent := filepath.Dir(source)
		if info, err := os.Stat(parent); err == nil {
			h.visit(parent, signatureOf(info).identity())
		}
	}
	for dir := range h.watched {
		if !h.visited[dir] {
			_ = h.watcher.Remove(dir) // gone by itself if the folder is
			delete(h.watched, dir)
		}
	}
}

// concerns tells whether an event is about the folders: of their parents, only
// the folders' own names count.
func (h *hints) concerns(e fsnotify.Event) bool {
	dir := filepath.Dir(e.Name)
	for source := range h.sources {
		if e.Name == source || dir == source || within(source, dir) {
			return true
		}
	}
	return false
}

func within(source, dir string) bool {
	rel, err := filepath.Rel(source, dir)
	return err == nil && filepath.IsLocal(rel)
}

func (h *hints) events() (<-chan fsnotify.Event, <-chan error) {
	if h.watcher == nil {
		return nil, nil
	}
	return h.watcher.Events, h.watcher.Errors
}

func (h *hints) close() {
	if h.watcher != nil {
		_ = h.watcher.Close() // never fails: inotify
	}
}

// pace decides when to look next. It is pure.
type pace struct {
	settle time.Duration
	due    time.Duration // 0: nothing to do
	begun  time.Duration // of the last look
	ended  time.Duration
	retry  time.Duration
}

// heard brings the next look forward: at once after a time of rest, otherwise so
// that looking takes a small share of all time.
func (p *pace) heard(now time.Duration) {
	p.retry = 0
	at := max(now, p.ended+min(duty*(p.ended-p.begun), time.Second))
	if p.due == 0 || at < p.due {
		p.due = at
	}
}

// urge is heard by somebody who waits: the share of time does not count.
func (p *pace) urge(now time.Duration) {
	if at := max(now, p.begun+p.settle/2); p.due == 0 || at < p.due {
		p.due = at
	}
}

// looked notes a look and what it left unsettled.
func (p *pace) looked(begun, ended time.Duration, waiting bool) {
	p.begun, p.ended, p.due = begun, ended, 0
	if !waiting {
		p.retry = 0
		return
	}
	p.retry = min(max(2*p.retry, p.settle), slowestRetry)
	p.due = max(begun+p.retry+time.Millisecond, ended+(duty-1)*(ended-begun))
}

// Run notices changes and publishes them until ctx ends.
func (l *Library) Run(ctx context.Context) error {
	h := newHints(l.folders, func(err error) {
		l.cfg.Log.Warn("no events of script folders, looking every two seconds instead", "error", err)
	})
	defer h.close()
	events, failures := h.events()
	full := time.NewTicker(l.cfg.Rescan)
	defer full.Stop()
	glances := time.NewTicker(glance)
	defer glances.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	p := &pace{settle: l.cfg.Settle, due: l.now()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if !h.concerns(e) {
				continue
			}
			l.dirty.Store(true)
			p.heard(l.now())
		case err := <-failures:
			l.cfg.Log.Debug("events of script folders were lost", "error", err)
			p.heard(l.now())
		case <-full.C:
			p.heard(l.now())
		case <-glances.C:
			blind := h.blind && l.now()-p.ended > blindRescan
			if !blind && !l.flipped() {
				continue
			}
			p.heard(l.now())
		case <-l.wake:
			if l.urgent.Swap(false) {
				p.urge(l.now())
			}
			l.collect()
		case <-due.C:
			begun := l.now()
			h.begin()
			waiting := l.look(h.visit)
			h.end()
			l.collect() // after the look is over: nobody waits for it
			p.looked(begun, l.now(), waiting)
		}
		due.Stop()
		if p.due > 0 {
			due.Reset(max(0, p.due-l.now()))
		}
	}
}

// flipped tells whether a source is another folder than at the last look.
func (l *Library) flipped() bool {
	for _, f := range l.folders {
		id := identity{}
		if info, err := os.Stat(f.source); err == nil {
			id = signatureOf(info).identity()
		}
		if id != f.id {
			return true
		}
	}
	return false
}
