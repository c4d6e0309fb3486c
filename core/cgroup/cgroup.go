// Package cgroup holds the processes of each attempt together so that they can
// be limited, counted and ended without exception (P9), on hosts with cgroup v2,
// with v1, with both, and with none.
package cgroup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/pidfd"
)

// The modes. They say how processes are found and killed.
const (
	ModeV2     = "v2"     // cgroup.kill; limits by v2 controllers
	ModeHybrid = "hybrid" // cgroup.kill; limits by v1 controllers
	ModeV1     = "v1"     // freezer and SIGKILL; limits by v1 controllers
	ModeNone   = "none"   // a walk through /proc; no limits
)

// ConditionNone is the condition of a host on which no cgroup holds the processes of
// an attempt together.
const ConditionNone = "NO_CGROUPS"

// Defaults of Config.
const (
	DefaultUnkillable = 60 * time.Second
	DefaultSpares     = 512
)

// MarkVariable is the environment variable that carries an attempt's mark. It
// is how the processes of an attempt are known on hosts without cgroups.
const MarkVariable = "DROVER_MARK"

// Config says where groups are made. The zero value works.
type Config struct {
	// Name tells workers of one host apart; "" is "drover". Letters, digits,
	// dot, dash and underscore.
	Name string
	Log  *slog.Logger
	// Force narrows what is used: ModeV1 leaves cgroup v2 alone, ModeNone
	// leaves all cgroups alone. "" takes the best there is.
	Force string
	// Unkillable is how long a stop waits for processes to die of SIGKILL
	// before it says that they do not; 0 is DefaultUnkillable.
	Unkillable time.Duration
	// Spares bounds the empty groups kept for reuse; 0 is DefaultSpares.
	Spares int
}

// Manager makes groups below the cgroup that this process lives in. All methods
// may be called from any goroutine.
type Manager struct {
	cfg      Config
	mode     string
	base     string             // folder of the groups in the killing hierarchy
	enabled  []string           // v2 controllers switched on in base's parent by us
	controls map[string]control // by controller: cpu, memory, pids
	instance string             // begins the names of groups made by this manager
	never    map[int]bool       // this process and its ancestors
	scanner  *scanner
	began    time.Time
	first    uint64   // clock tick since boot at which it began
	watcher  *watcher // nil unless the killing hierarchy is v2

	mu      sync.Mutex // guards what follows
	spares  []spare
	used    map[string]bool // folders handed out or reopened, not yet released
	doomed  []string        // folders to remove once nothing is in them
	parents map[string]bool // folders made to hold groups
	made    uint64
	closed  bool
}

// spare is an empty group that waits for its next attempt.
type spare struct {
	dir    string
	uid    int     // of its jobs
	events *events // nil with v1
}

// close lets go of what is open of it.
func (s spare) close() {
	if s.events != nil {
		s.events.close()
	}
}

// control is a controller that limits can be set with.
type control struct {
	version int
	base    string // folder below which a group's folder is made
}

// New finds out what the host offers and takes the best of it. It answers
// Invalid for a name or a mode that cannot be; where cgroups are not writable it
// logs why and goes on without them.
func New(cfg Config) (*Manager, error) {
	const op = "open cgroups"
	if cfg.Name == "" {
		cfg.Name = "drover"
	}
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`).MatchString(cfg.Name) {
		return nil, errs.Field(op, "name", "NAME_INVALID", "%q cannot name a cgroup: use letters, digits, dot, dash, underscore", cfg.Name)
	}
	if cfg.Force != "" && cfg.Force != ModeV1 && cfg.Force != ModeNone {
		return nil, errs.Field(op, "force", "MODE_INVALID", "%q cannot be forced: use %q or %q", cfg.Force, ModeV1, ModeNone)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Unkillable == 0 {
		cfg.Unkillable = DefaultUnkillable
	}
	if cfg.Spares == 0 {
		cfg.Spares = DefaultSpares
	}
	random := make([]byte, 5)
	rand.Read(random) // never fails: crypto/rand
	m := &Manager{
		cfg: cfg, mode: ModeNone, instance: hex.EncodeToString(random), scanner: newScanner(), began: time.Now(), first: pidfd.Now(),
		controls: map[string]control{}, used: map[string]bool{}, parents: map[string]bool{},
	}
	var err error
	if m.never, err = ancestry(os.Getpid()); err != nil {
		return nil, errs.E(op, errs.Internal, "PROC", err)
	}
	if cfg.Force != ModeNone {
		if err := m.settle(); err != nil {
			return nil, errs.E(op, errs.Internal, "CGROUP", err)
		}
	}
	return m, nil
}

// Mode is how processes are found and killed: one of the Mode constants.
func (m *Manager) Mode() string { return m.mode }

// Conditions tells what cannot be promised on this host.
func (m *Manager) Conditions() []job.Condition {
	if m.mode != ModeNone {
		return nil
	}
	return []job.Condition{{
		Type: ConditionNone, Since: m.began,
		Message: "no cgroups: a process that hides on purpose outlives the stop of its job, until this worker leaves",
	}}
}

// settle chooses the hierarchy that groups are killed in, and the controllers.
func (m *Manager) settle() error {
	found, err := hierarchies()
	if err != nil {
		return err
	}
	var why []error
	if m.cfg.Force == "" {
		err := m.settleV2(found)
		if err == nil {
			return nil
		}
		why = append(why, err)
	}
	if err = m.settleV1(found); err == nil {
		return nil
	}
	why = append(why, err)
	m.cfg.Log.Warn("cgroups cannot be used, processes are found by walking /proc", "reason", errors.Join(why...),
		"hint", "a user's systemd gives cgroups: systemd-run --user -p Delegate=yes drover worker ...")
	return nil
}

func (m *Manager) settleV2(found []hierarchy) error {
	h, ok := find(found, "")
	if !ok {
		return errors.New("cgroup v2 is not mounted")
	}
	home := delegated(h.dir)
	base := filepath.Join(home, "drover-"+m.cfg.Name)
	if err := writable(home); err != nil {
		return err
	}
	if err := m.makeParent(base); err != nil {
		return err
	}
	if kind, err := readLine(base, "cgroup.type"); err != nil || kind != "domain" {
		_ = os.Remove(base) // made for the probe
		return fmt.Errorf("cgroup %s is of type %q, not domain: %w", base, kind, errors.ErrUnsupported)
	}
	w, err := newWatcher()
	if err != nil {
		return err
	}
	m.watcher, m.base, m.mode = w, base, ModeV2
	m.enableV2(home)
	if m.controlsV1(found) {
		m.mode = ModeHybrid
	}
	return nil
}

func (m *Manager) settleV1(found []hierarchy) error {
	h, ok := find(found, "freezer")
	if !ok {
		return errors.New("the v1 freezer is not mounted")
	}
	if err := writable(h.dir); err != nil {
		return err
	}
	base := filepath.Join(h.dir, "drover-"+m.cfg.Name)
	if err := m.makeParent(base); err != nil {
		return err
	}
	m.base, m.mode = base, ModeV1
	m.controlsV1(found)
	return nil
}

// writable tells whether groups can be made below dir and processes moved into
// them: a process may be born into a cgroup only by who may write cgroup.procs of
// the common ancestor (cgroups(7), delegation containment).
func writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("make cgroups in %s: %w", dir, err)
	}
	if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
		return fmt.Errorf("move processes into cgroups of %s: %w", dir, err)
	}
	return nil
}

func (m *Manager) makeParent(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make parent of groups: %w", err)
	}
	m.mu.Lock()
	m.parents[dir] = true
	m.mu.Unlock()
	return nil
}

// Prune removes the groups of former lives of this worker that nobody has
// reopened. Call it once, after the attempts that lived on have been reopened and
// no start of a former life is on its way any more. It returns the folders of
// those that still hold processes; they are left alone.
func (m *Manager) Prune() ([]string, error) {
	if m.mode == ModeNone {
		return nil, nil
	}
	var alive []string
	for _, parent := range m.parentList() {
		entries, err := os.ReadDir(parent)
		if err != nil && !gone(err) {
			return nil, errs.E("prune cgroups", errs.Internal, "CGROUP", err)
		}
		for _, e := range entries {
			dir := filepath.Join(parent, e.Name())
			if !e.IsDir() || m.owns(dir) {
				continue
			}
			if err := removeTree(dir); errors.Is(err, unix.EBUSY) {
				alive = append(alive, dir)
			} else if err != nil {
				return alive, errs.E("prune cgroups", errs.Internal, "CGROUP", err)
			}
		}
	}
	return alive, nil
}

// End kills what is in groups that Prune has returned.
func (m *Manager) End(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		if filepath.Dir(dir) != m.base {
			continue // of a controller of limits: the same processes again
		}
		g := &Group{m: m, dir: dir, unified: m.mode != ModeV1, reopened: true}
		if g.unified {
			g.events = newEvents(dir)
		}
		if _, err := g.Stop(ctx, StopRequest{}); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) parentList() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for p := range m.parents {
		list = append(list, p)
	}
	return list
}

// owns tells whether dir belongs to this life of the worker.
func (m *Manager) owns(dir string) bool {
	if len(filepath.Base(dir)) > len(m.instance) && filepath.Base(dir)[:len(m.instance)] == m.instance {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used[dir]
}

// Close removes every empty group of this worker, of former lives too, and what
// held them (P17). Groups with processes stay, for Reopen after a restart. No
// method may be called after it.
func (m *Manager) Close() error {
	m.mu.Lock()
	done := m.closed
	m.closed = true
	spares := m.spares
	m.spares = nil
	m.mu.Unlock()
	for _, s := range spares {
		s.close()
	}
	if done {
		return nil
	}
	if m.watcher != nil {
		m.watcher.close()
	}
	var failures []error
	for _, parent := range m.parentList() {
		if err := removeEmpty(parent); err != nil {
			failures = append(failures, err)
		}
	}
	m.disableV2()
	if err := errors.Join(failures...); err != nil {
		return errs.E("close cgroups", errs.Internal, "CGROUP", err)
	}
	return nil
}
