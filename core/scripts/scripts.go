// Package scripts publishes script folders: it notices every change, copies what
// has settled, and hands out versions that no later edit can touch (P12, P13).
package scripts

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Defaults of Config.
const (
	DefaultSettle  = 20 * time.Millisecond
	DefaultRescan  = 30 * time.Second
	DefaultMaxSize = 64 << 20
)

// Config says what is published and where to. Dir is required.
type Config struct {
	// Folders are the script folders, in the order in which they are searched. One
	// that does not exist yet is empty until it does.
	Folders []string
	// Dir belongs to the library: blobs and generations. It must be on one file
	// system, with hard links.
	Dir string
	Log *slog.Logger
	// Settle is how long a file must stay as it is before it is published; 0 is
	// DefaultSettle. A folder that changes on and on waits at most twelve times as
	// long before what has settled is published.
	Settle time.Duration
	// Rescan is how often everything is looked at though nothing was heard; 0 is
	// DefaultRescan.
	Rescan time.Duration
	// MaxSize is the largest file that is published, in bytes; 0 is DefaultMaxSize.
	MaxSize int64
	// BootID tells boots of the machine apart; "" reads the kernel's.
	BootID string
}

// The conditions of a library.
const (
	ConditionFolder  = "SCRIPTS_FOLDER"       // a folder is missing or unreadable
	ConditionRefused = "SCRIPT_NOT_PUBLISHED" // files that are not published, and why
)

// Library publishes script folders. All methods may be called from any goroutine.
type Library struct {
	cfg     Config
	boot    string
	dir     string // of the generations
	folders []*folder
	blobs   *blobs
	began   time.Time
	changed chan struct{}
	wake    chan struct{} // a Pin wants a look, or a generation may go
	urgent  atomic.Bool   // a Pin waits
	dirty   atomic.Bool   // something was heard that no look has answered

	mu     sync.Mutex // guards what follows
	last   uint64     // highest generation ever
	trees  map[uint64]*tree
	index  job.ScriptIndex
	untold job.Condition // that the index has no room for all scripts; zero: it has
	round  *round        // the next look that begins
	litter bool          // a generation may be removed
}

// folder is one configured script folder.
type folder struct {
	name   string // last segment of source, made unique
	source string // absolute

	// Only the goroutine that looks touches these.
	pending map[string]observation
	unrest  time.Duration // since when something differs, if it does
	restive bool
	id      identity // of the folder itself at the last look

	// Guarded by Library.mu.
	current    *tree
	settling   bool
	distrusted map[string]bool // published files that were written to
	conditions []job.Condition
}

// round is one look at all folders.
type round struct{ done chan struct{} }

// New opens a library, brings back the generations of a former life, and publishes
// what the folders hold now.
func New(cfg Config) (*Library, error) {
	const op = "open script library"
	if cfg.Dir == "" {
		return nil, errs.Field(op, "dir", "DIR_MISSING", "a script library needs a folder of its own")
	}
	cfg.Settle = cmp.Or(cfg.Settle, DefaultSettle)
	cfg.Rescan = cmp.Or(cfg.Rescan, DefaultRescan)
	cfg.MaxSize = cmp.Or(cfg.MaxSize, DefaultMaxSize)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, errs.E(op, errs.Internal, "BOOT_ID", err)
		}
		cfg.BootID = strings.TrimSpace(string(id))
	}
	l := &Library{
		cfg: cfg, boot: cfg.BootID, began: time.Now(),
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		trees: map[uint64]*tree{}, round: &round{done: make(chan struct{})},
	}
	var err error
	if l.folders, err = name(cfg.Folders); err != nil {
		return nil, errs.E(op, errs.Invalid, "FOLDER", err)
	}
	if err := l.open(); err != nil {
		return nil, errs.E(op, errs.Internal, "SCRIPTS_DIR", err)
	}
	// Two looks with a pause: then what was at rest is published.
	for l.look(func(string, identity) {}) {
		if l.sinceUnrest() >= l.patience() {
			break
		}
		time.Sleep(l.cfg.Settle)
	}
	return l, nil
}

// name gives each folder its short name: the last segment, numbered if another
// has it.
func name(sources []string) ([]*folder, error) {
	var list []*folder
	used := map[string]bool{}
	for _, s := range sources {
		abs, err := filepath.Abs(s)
		if err != nil {
			return nil, fmt.Errorf("name script folder: %w", err)
		}
		base := filepath.Base(abs)
		if base == "/" {
			return nil, errors.New("the root of the file system cannot be a script folder")
		}
		unique := base
		for n := 2; used[unique]; n++ {
			unique = base + "~" + strconv.Itoa(n)
		}
		used[unique] = true
		list = append(list, &folder{
			name: unique, source: abs, pending: map[string]observation{}, distrusted: map[string]bool{},
		})
	}
	return list, nil
}

// open prepares the library's own folder and reads what a former life left there.
func (l *Library) open() error {
	abs, err := filepath.Abs(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("find library: %w", err)
	}
	store, tmp := filepath.Join(abs, "blobs"), filepath.Join(abs, "tmp")
	l.dir = filepath.Join(abs, "generations")
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("clear library: %w", err)
	}
	// Users that jobs run as pass through, and see only what is published.
	for _, d := range []struct {
		dir  string
		mode os.FileMode
	}{{abs, 0o711}, {l.dir, 0o711}, {store, 0o700}, {tmp, 0o700}} {
		if err := os.MkdirAll(d.dir, d.mode); err != nil {
			return fmt.Errorf("make library: %w", err)
		}
		if err := os.Chmod(d.dir, d.mode); err != nil { // a former life may have made it otherwise
			return fmt.Errorf("make library: %w", err)
		}
	}
	l.blobs = newBlobs(store, tmp)
	found, last, err := l.load(l.dir, l.boot)
	if err != nil {
		return err
	}
	l.last = last
	for _, t := range found {
		l.trees[t.Generation] = t
		for _, file := range t.Files {
			if file.Blob != "" {
				l.blobs.trust(file)
			}
		}
		for _, f := range l.folders {
			if !t.surveyed && f.name == t.Folder && f.source == t.Source {
				f.current = t
			}
		}
	}
	l.reindex()
	return l.blobs.sweep()
}

// Index lists what is published, sorted by path. A path that several folders hold
// is listed for each; Pin takes the folder that was configured first. Names that
// are not UTF-8 are published but cannot be named, and are left out. The slice is
// shared: read only.
func (l *Library) Index() job.ScriptIndex {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index
}

// Changed has a value after the index has changed, coalesced.
func (l *Library) Changed() <-chan struct{} { return l.changed }

// Conditions tells what is wrong with the folders.
func (l *Library) Conditions() []job.Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []job.Condition
	for _, f := range l.folders {
		all = append(all, f.conditions...)
	}
	if l.untold.Type != "" {
		all = append(all, l.untold)
	}
	return all
}

// reindex makes the index anew. The caller holds mu, or nobody else knows l yet.
func (l *Library) reindex() {
	index := job.ScriptIndex{}
	for _, f := range l.folders {
		if f.current == nil {
			continue
		}
		index.Generation = max(index.Generation, f.current.Generation)
		for name, file := range f.current.Files {
			if !utf8.ValidString(name) {
				continue
			}
			index.Scripts = append(index.Scripts, job.ScriptInfo{
				Path: name, Folder: f.name, SHA256: file.SHA256, Size: file.Sig.Size, ModTime: time.Unix(0, file.Sig.Modified),
			})
		}
	}
	order := map[string]int{}
	for i, f := range l.folders {
		order[f.name] = i
	}
	slices.SortFunc(index.Scripts, func(a, b job.ScriptInfo) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), order[a.Folder]-order[b.Folder])
	})
	l.limit(&index)
	l.index = index
}

// limit keeps an index within what a scheduler takes. A script beyond that is not
// listed, and no job is placed for it.
func (l *Library) limit(index *job.ScriptIndex) {
	n, fit := len(index.Scripts), fitting(index.Scripts)
	if fit == n {
		l.untold = job.Condition{}
		return
	}
	index.Scripts = index.Scripts[:fit]
	message := fmt.Sprintf("of %d scripts the first %d by path are listed; a scheduler takes at most %d of one worker, and %d MiB of paths and sums",
		n, fit, job.MaxScripts, job.MaxScriptsBytes>>20)
	if l.untold.Message != message {
		l.untold = job.Condition{Type: "TOO_MANY_SCRIPTS", Message: message, Since: time.Now()}
		l.cfg.Log.Warn("too many scripts", "scripts", n, "listed", fit)
	}
}

// fitting returns how many of the first scripts a scheduler takes.
func fitting(all []job.ScriptInfo) int {
	size := 0
	for i := range all {
		if size += all[i].Bytes(); i == job.MaxScripts || size > job.MaxScriptsBytes {
			return i
		}
	}
	return len(all)
}

// Retain tells which generations of a former life are still needed. Call it once
// the attempts that lived on have their pins again; those generations that are in
// nobody's hand and not in the list are removed.
func (l *Library) Retain(generations []uint64) {
	l.mu.Lock()
	for n, t := range l.trees {
		t.held = t.held && slices.Contains(generations, n)
	}
	l.litter = true
	l.mu.Unlock()
	l.poke()
}

// poke makes Run look up.
func (l *Library) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
