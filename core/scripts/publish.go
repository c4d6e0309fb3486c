package scripts

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/droverhq/drover/core/job"
)

// restlessness is how many settle times a folder that changes on and on is waited
// for before what has settled is published without the rest.
const restlessness = 12

func (l *Library) patience() time.Duration { return restlessness * l.cfg.Settle }

func (l *Library) now() time.Duration { return time.Since(l.began) }

// sinceUnrest is how long the most restive folder has been so.
func (l *Library) sinceUnrest() time.Duration {
	longest := time.Duration(0)
	for _, f := range l.folders {
		if f.restive {
			longest = max(longest, l.now()-f.unrest)
		}
	}
	return longest
}

// look goes through all folders once and publishes what has settled. It tells
// whether something has not. One goroutine at a time may look.
func (l *Library) look(visit func(string, identity)) (waiting bool) {
	l.mu.Lock()
	mine := l.round
	l.round = &round{done: make(chan struct{})}
	l.mu.Unlock()
	defer close(mine.done)
	l.dirty.Store(false)
	for _, f := range l.folders {
		unsettled, err := l.lookAt(f, visit)
		l.note(f, ConditionFolder, err)
		waiting = waiting || unsettled
	}
	return waiting
}

// lookAt goes through one folder.
func (l *Library) lookAt(f *folder, visit func(string, identity)) (waiting bool, err error) {
	now := l.now()
	list, err := scan(f.source, l.cfg.MaxSize, visit)
	if err != nil {
		return false, err
	}
	defer list.close()
	f.id = list.folders["."].identity()
	p := decide(l.published(f), list.files, f.pending, now, l.cfg.Settle)
	f.pending = p.pending
	if !f.restive {
		f.unrest = now
	}
	f.restive = len(p.pending) > 0
	settling := p.waiting && now-f.unrest < l.patience()
	if !settling && len(p.copy)+len(p.drop) > 0 {
		busy, err := l.publish(f, p, list)
		if err != nil {
			return true, err
		}
		waiting = busy
		f.restive = len(f.pending) > 0
	}
	l.mu.Lock()
	f.settling = settling
	l.mu.Unlock()
	l.note(f, ConditionRefused, summary(list.refused))
	if list.root == nil {
		return waiting || p.waiting, errors.New("it does not exist")
	}
	return waiting || p.waiting, nil
}

// published lists the sources of the current generation, without those whose
// published version was written to.
func (l *Library) published(f *folder) map[string]signature {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.current == nil {
		return map[string]signature{}
	}
	list := f.current.signatures()
	for name := range f.distrusted {
		delete(list, name)
	}
	return list
}

// publish copies what the plan says and makes a generation if that changes
// anything. It tells whether a file could not be taken yet.
func (l *Library) publish(f *folder, p plan, list listing) (busy bool, err error) {
	l.mu.Lock()
	old := f.current
	l.mu.Unlock()
	files := map[string]file{}
	if old != nil {
		files = maps.Clone(old.Files)
	}
	for _, name := range p.copy {
		made, err := l.blobs.add(list.root, name, list.files[name])
		if errors.Is(err, errMoved) || errors.Is(err, errBusy) {
			// The version before stays published (P12).
			f.pending[name] = observation{list.files[name], l.now()}
			busy = true
			continue
		}
		if errors.Is(err, os.ErrPermission) {
			list.refused[name] = why(err)
			delete(files, name)
			continue
		}
		if err != nil {
			return true, fmt.Errorf("%s: %w", name, err)
		}
		files[name] = made
		delete(f.pending, name)
	}
	for _, name := range p.drop {
		delete(files, name)
		delete(f.pending, name)
	}
	if old != nil && !old.differs(files) {
		l.mu.Lock()
		old.Files = files // other signatures, same content
		clear(f.distrusted)
		l.mu.Unlock()
		return busy, nil
	}
	return busy, l.advance(f, files, list.folders)
}

// advance makes files the folder's current generation.
func (l *Library) advance(f *folder, files map[string]file, folders map[string]signature) error {
	l.mu.Lock()
	l.last++
	t := &tree{Generation: l.last, Folder: f.name, Source: f.source, Boot: l.boot, Files: files}
	l.mu.Unlock()
	if err := t.build(l.dir, l.blobs, folders); err != nil {
		return err
	}
	l.mu.Lock()
	f.current = t
	clear(f.distrusted)
	l.trees[t.Generation] = t
	l.litter = true
	l.reindex()
	l.mu.Unlock()
	l.cfg.Log.Info("scripts published", "folder", f.source, "generation", t.Generation, "files", len(files))
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return nil
}

// collect removes the generations that are neither current nor in anybody's hand,
// and the blobs that only they held.
func (l *Library) collect() {
	var old []*tree
	l.mu.Lock()
	if l.litter {
		current := map[uint64]bool{}
		for _, f := range l.folders {
			if f.current != nil {
				current[f.current.Generation] = true
			}
		}
		for n, t := range l.trees {
			if !current[n] && t.pins == 0 && !t.held {
				old = append(old, t)
				delete(l.trees, n)
			}
		}
		l.litter = false
	}
	l.mu.Unlock()
	for _, t := range old {
		if err := t.remove(); err != nil {
			l.cfg.Log.Warn("an old generation cannot be removed", "generation", t.Generation, "error", err)
		}
	}
	if len(old) > 0 {
		if err := l.blobs.sweep(); err != nil {
			l.cfg.Log.Warn("old scripts cannot be removed", "error", err)
		}
	}
}

// note sets or clears a condition of a folder; a lasting one keeps its time. What
// is new is logged.
func (l *Library) note(f *folder, kind string, problem error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(f.conditions, func(c job.Condition) bool { return c.Type == kind })
	if problem == nil {
		if i >= 0 {
			f.conditions = slices.Delete(f.conditions, i, i+1)
		}
		return
	}
	if i < 0 {
		f.conditions = append(f.conditions, job.Condition{Type: kind, Since: time.Now()})
		i = len(f.conditions) - 1
	}
	if text := f.source + ": " + problem.Error(); f.conditions[i].Message != text {
		f.conditions[i].Message = text
		l.cfg.Log.Warn("a script folder is not published as it is", "folder", f.source, "reason", problem)
	}
}

// summary names what is not published: the first by name, and how many more.
func summary(refused map[string]string) error {
	if len(refused) == 0 {
		return nil
	}
	first := slices.Min(slices.Collect(maps.Keys(refused)))
	if n := len(refused) - 1; n > 0 {
		return fmt.Errorf("%q %s, and %d more are not published", first, refused[first], n)
	}
	return fmt.Errorf("%q %s", first, refused[first])
}
