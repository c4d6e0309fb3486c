package scripts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

const (
	// pinPatience bounds how long Pin waits for an edit to be published.
	pinPatience = time.Second
	// calmTimes bounds how many settle times Pin waits for other files of the
	// folder, which the script may source.
	calmTimes = 2
)

// Pin is a script that stays as it is until Release. It is immutable.
type Pin struct {
	Path       string // the published file, absolute
	Root       string // folder of the generation that stands for the script folder
	Source     string // where it came from, absolute
	Folder     string // name of the script folder
	Name       string // path below the script folder
	SHA256     string // of its content, lower-case hex
	Generation uint64

	release func()
}

// Release lets go of the generation. Calls after the first do nothing.
func (p *Pin) Release() { p.release() }

// Pin finds the script that path names and holds its generation. A script that
// was edited just now is waited for, about a second at most; one that is still
// being written then is given out as it was before. Errors are Invalid, field
// path, reason PATH_REFUSED or SCRIPT_NOT_FOUND.
func (l *Library) Pin(path string) (*Pin, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	l.calm()
	deadline := time.NewTimer(pinPatience)
	defer deadline.Stop()
	for {
		next := l.nextRound()
		c, err := l.find(path)
		if err != nil {
			return nil, err
		}
		if c.fresh {
			if p := l.take(l.current(c.folder), c.name); p != nil && l.genuine(c, p) {
				return p, nil
			}
		}
		l.urgent.Store(true)
		l.poke()
		select {
		case <-next.done:
		case <-deadline.C:
			return l.settleFor(c, path)
		}
	}
}

// settleFor gives out what there is of a script that did not settle in time.
func (l *Library) settleFor(c candidate, path string) (*Pin, error) {
	if c.there {
		if p := l.take(l.current(c.folder), c.name); p != nil && l.genuine(c, p) {
			return p, nil
		}
		return nil, missing("%q is still being written", path).WithHint("start the job again when the script is complete")
	}
	return nil, l.unknown(path)
}

// calm waits a moment while a folder is known to change: an edit may be in a file
// that the script sources.
func (l *Library) calm() {
	timeout := time.NewTimer(calmTimes * l.cfg.Settle)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		next, restless := l.round, l.dirty.Load()
		for _, f := range l.folders {
			restless = restless || f.settling
		}
		l.mu.Unlock()
		if !restless {
			return
		}
		select {
		case <-next.done:
		case <-timeout.C:
			return
		}
	}
}

func (l *Library) nextRound() *round {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.round
}

// candidate is what a path means at this moment.
type candidate struct {
	folder *folder
	name   string
	there  bool // a file is there
	fresh  bool // and it is the one that is published
}

// find reads the path in each folder: literally first, then without the folder's
// own trailing names; the folder configured first wins.
func (l *Library) find(path string) (candidate, error) {
	var refusal error
	for literal := range 2 {
		for _, f := range l.folders {
			names := readings(f.source, path)
			if literal == 0 {
				names = names[:1]
			} else {
				names = names[1:]
			}
			for _, name := range names {
				c, err := l.probe(f, name)
				if c.folder != nil {
					return c, nil
				}
				if refusal == nil && err != nil {
					refusal = err
				}
			}
		}
	}
	if refusal != nil {
		return candidate{}, refusal
	}
	return candidate{}, l.unknown(path)
}

// probe compares a file with what is published of it. It returns nothing where
// nothing is and was, and an error where something is that must not run (P13).
func (l *Library) probe(f *folder, name string) (candidate, error) {
	l.mu.Lock()
	var pub file
	known := false
	if f.current != nil {
		pub, known = f.current.Files[name]
	}
	known = known && !f.distrusted[name]
	l.mu.Unlock()
	sig, err := stat(f.source, name, l.cfg.MaxSize)
	switch {
	case err == nil:
		return candidate{folder: f, name: name, there: true, fresh: known && pub.Sig == sig}, nil
	case errors.Is(err, fs.ErrNotExist) && known:
		return candidate{folder: f, name: name}, nil // perhaps only for the moment
	case errors.Is(err, fs.ErrNotExist):
		return candidate{}, nil
	}
	return candidate{}, err
}

// stat looks at one file, never outside of the folder. It answers fs.ErrNotExist
// or a refusal.
func stat(source, name string, maxSize int64) (signature, error) {
	root, err := os.OpenRoot(source)
	if errors.Is(err, fs.ErrNotExist) {
		return signature{}, fs.ErrNotExist
	}
	if err != nil {
		return signature{}, refuse("script folder %q cannot be read: %s", filepath.Base(source), reason(err))
	}
	defer func() { _ = root.Close() }()
	info, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		if link, err := root.Lstat(name); err != nil || link.Mode()&fs.ModeSymlink == 0 {
			return signature{}, fs.ErrNotExist
		}
	}
	if err != nil {
		return signature{}, refuse("%q %s", name, why(err)).WithHint("put a regular file into the script folder")
	}
	if what := unfit(info, maxSize); what != "" {
		return signature{}, refuse("%q %s", name, what).WithHint("name a regular file in a script folder")
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if hidden(path.Base(dir)) {
			return signature{}, refuse("%q is in a folder of version control, which is not published", name).
				WithHint("put the script elsewhere in the script folder")
		}
	}
	return signatureOf(info), nil
}

// unknown is the error for a path that names nothing. It offers a script of the
// same name in another place.
func (l *Library) unknown(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := missing("no script folder of this worker holds %q", name)
	for _, s := range l.index.Scripts {
		if path.Base(s.Path) == path.Base(name) && s.Path != name {
			return e.WithHint("did you mean %q? `drover scripts` lists them all", s.Path)
		}
	}
	return e.WithHint("`drover scripts` lists what there is; put the file into a script folder of the worker")
}

// current is the folder's generation at this moment.
func (l *Library) current(f *folder) *tree {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.current
}

// take pins a file of a tree; nil if it has none of that name or is gone.
func (l *Library) take(t *tree, name string) *Pin {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t == nil || l.trees[t.Generation] != t {
		return nil
	}
	f, ok := t.Files[name]
	if !ok {
		return nil
	}
	t.pins++
	return &Pin{
		Path: filepath.Join(t.root(), name), Root: t.root(), Source: filepath.Join(t.Source, name),
		Folder: t.Folder, Name: name, SHA256: f.SHA256, Generation: t.Generation,
		release: sync.OnceFunc(func() { l.drop(t) }),
	}
}

func (l *Library) drop(t *tree) {
	l.mu.Lock()
	t.pins--
	// The current generation stays, whoever holds it.
	idle := t.pins == 0 && !slices.ContainsFunc(l.folders, func(f *folder) bool { return f.current == t })
	if idle {
		l.litter = true
	}
	l.mu.Unlock()
	if idle {
		l.poke()
	}
}

// genuine tells whether the published file is what was published. If a job wrote
// to it, it lets go of it and has it published anew.
func (l *Library) genuine(c candidate, p *Pin) bool {
	l.mu.Lock()
	t := l.trees[p.Generation]
	f := t.Files[c.name]
	l.mu.Unlock()
	if f.untouched(p.Path) {
		return true
	}
	l.cfg.Log.Warn("a published script was written to and is published anew", "path", p.Path)
	p.Release()
	l.blobs.distrust(f.Blob)
	l.mu.Lock()
	c.folder.distrusted[c.name] = true
	l.mu.Unlock()
	return false
}

// PinGeneration finds a script again that an attempt has held since before the
// worker was restarted. NotFound if that generation is gone.
func (l *Library) PinGeneration(generation uint64, folder, name string) (*Pin, error) {
	l.mu.Lock()
	t := l.trees[generation]
	l.mu.Unlock()
	if t != nil && t.Folder == folder {
		if p := l.take(t, name); p != nil {
			return p, nil
		}
	}
	return nil, errs.E("find script of a former life", errs.NotFound, job.ReasonScriptGone,
		fmt.Errorf("generation %d has no %q of folder %q", generation, name, folder))
}
