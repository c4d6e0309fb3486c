package dev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/errs"
)

// Probe asks a running cluster's scheduler how many of its workers are online and
// have a runner that is ready.
type Probe func(ctx context.Context, r Running) (ready int, err error)

// Up starts what is missing of the cluster and returns when every worker is
// online with a runner. It takes over daemons that run already.
func (c *Cluster) Up(ctx context.Context, probe Probe) (Running, error) {
	unlock, err := c.lock()
	if err != nil {
		return Running{}, err
	}
	defer unlock()
	if err := c.prepare(); err != nil {
		return Running{}, err
	}
	for {
		running, err := c.running()
		if err != nil {
			return Running{}, err
		}
		started, err := c.startMissing(ctx, &running)
		if err != nil {
			return Running{}, err
		}
		// One that was dying when it was taken over is started anew.
		if err := c.awaitReady(ctx, probe, running, started); !errors.Is(err, errGone) {
			return running, err
		}
	}
}

// Revive starts the daemons that do not live, and does not wait until they are
// ready.
func (c *Cluster) Revive(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := c.running()
	if err != nil {
		return err
	}
	_, err = c.startMissing(ctx, &r)
	return err
}

// errGone tells that a daemon that was taken over has ended.
var errGone = errors.New("a daemon that was running has ended")

// running reads dev.json and leaves out what does not live any more.
func (c *Cluster) running() (Running, error) {
	r := Running{Certs: c.path("certs", "admin")}
	if err := readJSON(c.path("dev.json"), &r); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Running{}, err
	}
	r.Address = c.Address
	r.Processes = slices.DeleteFunc(r.Processes, func(p Process) bool { return !p.Alive() })
	return r, nil
}

func (r *Running) has(name string) bool {
	return slices.ContainsFunc(r.Processes, func(p Process) bool { return p.Name == name })
}

func (r *Running) hasWorkers() bool {
	return slices.ContainsFunc(r.Processes, func(p Process) bool { return p.Role == "worker" })
}

// save writes both files after each start, so that a drover that is killed in
// between leaves no daemon that "dev stop" does not know.
func (c *Cluster) save(r *Running) error {
	if err := writeJSON(c.path("cluster.json"), c.settings); err != nil {
		return err
	}
	return writeJSON(c.path("dev.json"), r)
}

func (c *Cluster) startMissing(ctx context.Context, r *Running) ([]*child, error) {
	var started []*child
	if !r.has("scheduler") {
		ch, err := c.startScheduler(ctx)
		if err != nil {
			return started, err
		}
		started = append(started, ch)
		r.Address = c.Address
		r.Processes = append(r.Processes, ch.Process)
		if err := c.save(r); err != nil {
			return started, err
		}
	}
	if r.Scripts == "" || !r.hasWorkers() {
		r.Scripts = c.scriptFolder()
	}
	for i := range c.Workers {
		name := workerName(i)
		if r.has(name) {
			continue
		}
		ch, err := c.startWorker(name, r.Scripts)
		if err != nil {
			return started, err
		}
		started = append(started, ch)
		r.Processes = append(r.Processes, ch.Process)
		if err := c.save(r); err != nil {
			return started, err
		}
	}
	return started, nil
}

// startScheduler starts it and waits until it has written the address that it
// listens on.
func (c *Cluster) startScheduler(ctx context.Context) (*child, error) {
	if c.Address != "" {
		return c.listenOn(ctx, c.Address)
	}
	if c.opts.Scratch {
		address, err := spareAddress()
		if err != nil {
			return nil, err
		}
		return c.listenOn(ctx, address)
	}
	ch, err := c.listenOn(ctx, DefaultAddress)
	if errors.Is(err, errDied) && !free(DefaultAddress) {
		// Another cluster of this machine has the well-known port: any does.
		return c.listenOn(ctx, "127.0.0.1:0")
	}
	return ch, err
}

func (c *Cluster) listenOn(ctx context.Context, listen string) (*child, error) {
	data := c.path("scheduler")
	addressFile := filepath.Join(data, "address")
	if err := os.Remove(addressFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old address: %w", err)
	}
	args := []string{"scheduler", "--listen", listen, "--data", data, "--certs", c.path("certs", "scheduler"), "--ca", c.path("certs", "ca")}
	if c.Memory {
		args = append(args, "--store", "memory:")
	}
	ch, err := spawn("scheduler", "scheduler", c.path("logs"), c.opts.Binary, args...)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if data, err := os.ReadFile(addressFile); err == nil && len(data) > 0 {
			c.Address = strings.TrimSpace(string(data))
			return ch, nil
		}
		select {
		case <-ch.done:
			return nil, died(ch)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// defaultSlots of a dev worker: it is there to try things.
const defaultSlots = 256

func (c *Cluster) startWorker(name, scripts string) (*child, error) {
	return spawn("worker", name, c.path("logs"), c.opts.Binary, "worker",
		"--name", name, "--scheduler", c.Address, "--listen", "127.0.0.1:0",
		"--data", c.path(name), "--certs", c.path("certs", name), "--plugins", c.path("plugins"),
		"--scripts", scripts, "--policy", c.path("policy.yaml"), "--slots", strconv.Itoa(cmp.Or(c.opts.Slots, defaultSlots)), "--drain-timeout", "0s")
}

// errDied is in the error of a daemon that ended before it was ready.
var errDied = errors.New("it ended at once")

func died(ch *child) error {
	return errs.E("start the "+ch.Role, errs.Internal, "DAEMON_DIED",
		fmt.Errorf("%s: %w; the end of its log:\n%s", ch.Name, errDied, ch.tail())).WithHint("the whole log is %s", ch.log)
}

// awaitReady polls the scheduler; a daemon of ours that dies meanwhile ends
// the wait at once.
func (c *Cluster) awaitReady(ctx context.Context, probe Probe, r Running, started []*child) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		ready, err := probe(ctx, r)
		if err == nil && ready >= c.Workers {
			return nil
		}
		last = err
		for _, ch := range started {
			select {
			case <-ch.done:
				return died(ch)
			default:
			}
		}
		if slices.ContainsFunc(r.Processes, func(p Process) bool { return !p.Alive() }) {
			return errGone
		}
		select {
		case <-ctx.Done():
			return errs.E("wait for the dev cluster", errs.Timeout, "NOT_READY",
				fmt.Errorf("%d of %d workers are ready: %w", ready, c.Workers, errors.Join(last, ctx.Err()))).
				WithHint("look into %s", c.path("logs"))
		case <-tick.C:
		}
	}
}

// Status lists the processes that live: daemons and their plugins.
func (c *Cluster) Status() (Running, error) {
	r, err := c.running()
	if err != nil {
		return Running{}, err
	}
	for i := range c.Workers {
		plugins, err := pluginProcesses(c.path(workerName(i)), workerName(i))
		if err != nil {
			return Running{}, err
		}
		r.Processes = append(r.Processes, plugins...)
	}
	return r, nil
}

// pluginRecord is the part of the plugin host's reattach record that names the process.
type pluginRecord struct {
	Name       string `json:"name"`
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
}

func pluginProcesses(data, worker string) ([]Process, error) {
	folder := filepath.Join(data, "plugins", "plugins")
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for plugins: %w", err)
	}
	var out []Process
	for _, e := range entries {
		f := filepath.Join(folder, e.Name())
		if filepath.Ext(f) != ".json" {
			continue
		}
		var rec pluginRecord
		if err := readJSON(f, &rec); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // it ended between the two looks
			}
			return nil, err
		}
		p := Process{Role: "plugin", Name: worker + "/" + rec.Name, PID: rec.PID, StartTicks: rec.StartTicks}
		if p.Alive() {
			out = append(out, p)
		}
	}
	return out, nil
}

// Down ends the cluster and every process that it started. A worker that is
// dead but left plugins or jobs behind is started once more to end them.
func (c *Cluster) Down(ctx context.Context, probe Probe) (ended int, err error) {
	unlock, err := c.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	r, err := c.Status()
	if err != nil {
		return 0, err
	}
	if c.orphans(&r) {
		started, err := c.startMissing(ctx, &r)
		if err != nil {
			return 0, err
		}
		if err := c.awaitReady(ctx, probe, r, started); err != nil {
			return 0, err
		}
	}
	for _, role := range []string{"worker", "scheduler", "plugin"} {
		n, err := c.end(&r, role)
		if err != nil {
			return ended, err
		}
		ended += n
	}
	if err := os.Remove(c.path("dev.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ended, fmt.Errorf("remove cluster state: %w", err)
	}
	return ended, nil
}

// orphans tells whether a plugin lives whose worker does not.
func (c *Cluster) orphans(r *Running) bool {
	return slices.ContainsFunc(r.Processes, func(p Process) bool {
		worker, _, _ := strings.Cut(p.Name, "/")
		return p.Role == "plugin" && !r.has(worker)
	})
}

func (c *Cluster) end(r *Running, role string) (int, error) {
	var ps []Process
	for _, p := range r.Processes {
		if p.Role == role && p.Alive() {
			ps = append(ps, p)
		}
	}
	for _, p := range ps {
		if err := p.signal(syscall.SIGTERM); err != nil {
			return 0, err
		}
	}
	for _, p := range ps {
		if awaitExit(p, 30*time.Second) {
			continue
		}
		if err := p.signal(syscall.SIGKILL); err != nil {
			return 0, err
		}
		awaitExit(p, 5*time.Second)
	}
	return len(ps), nil
}

// Reset forgets everything of a cluster that does not run.
func (c *Cluster) Reset() error {
	r, err := c.Status()
	if err != nil {
		return err
	}
	if len(r.Processes) > 0 {
		return errs.E("reset the dev cluster", errs.Precondition, "RUNNING", errors.New("it runs")).
			WithHint(`stop it first with "drover dev stop"`)
	}
	if entries, err := os.ReadDir(c.opts.Dir); err == nil && len(entries) > 0 && !exists(c.path("cluster.json")) {
		return errs.E("reset the dev cluster", errs.Precondition, "NO_CLUSTER", fmt.Errorf("%s holds other things than a dev cluster", c.opts.Dir)).
			WithHint("look into it, and remove it yourself if it may go")
	}
	if err := os.RemoveAll(c.opts.Dir); err != nil {
		return fmt.Errorf("remove %s: %w", c.opts.Dir, err)
	}
	c.settings = settings{Workers: max(1, c.opts.Workers), Memory: c.opts.Memory, Scripts: c.opts.Scripts}
	return nil
}
