// Package chaos kills the daemons of a cluster of its own, again and again,
// while jobs write down the truth about themselves, and settles accounts.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/dev"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Options says how much chaos.
type Options struct {
	Seed    uint64
	For     time.Duration // how long daemons are killed
	Kills   int           // end after so many; 0: when the time is over
	Workers int
	Jobs    int // under way at all times
}

// Cluster is what is attacked: a dev cluster that runs.
type Cluster interface {
	// Status lists the daemons and plugins that live.
	Status() (dev.Running, error)
	// Revive starts the daemons that do not.
	Revive(ctx context.Context) error
}

// patience bounds how long anything may take to come back.
const patience = 60 * time.Second

// run is one attack.
type run struct {
	Options
	cluster Cluster
	api     droverv1.SchedulerServiceClient
	dir     string // of the truth files
	say     func(format string, args ...any)

	daemons sync.Mutex // lets one goroutine at a time list and start daemons

	mu     sync.Mutex // guards the fields below
	ledger Ledger
	under  int // jobs under way
}

// Prepare writes the script that the jobs run into a script folder, and makes
// the folder for what they say of themselves.
func Prepare(dir string) (scripts string, err error) {
	scripts = filepath.Join(dir, "scripts")
	for _, d := range []string{scripts, filepath.Join(dir, "truth")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", fmt.Errorf("make a folder for the jobs: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(scripts, scriptName), []byte(script), 0o644); err != nil {
		return "", fmt.Errorf("write the script of the jobs: %w", err)
	}
	return scripts, nil
}

// Run attacks a cluster whose scripts Prepare has made in dir. It returns once
// the time is over, or ctx has ended, and every job has come to its end. say
// hears of what goes wrong, as it happens.
func Run(ctx context.Context, o Options, c Cluster, api droverv1.SchedulerServiceClient, dir string, say func(string, ...any)) (Ledger, error) {
	r := &run{Options: o, cluster: c, api: api, dir: filepath.Join(dir, "truth"), say: say}
	r.ledger.Killed, r.ledger.MinUnderWay = map[string]int{}, o.Jobs
	begin := time.Now()
	attack, enough := context.WithTimeout(ctx, o.For)
	defer enough()
	// Jobs go on after the last kill: what has begun must end.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var lanes, killers sync.WaitGroup
	for n := range o.Jobs {
		lanes.Go(func() {
			if err := r.lane(work, attack, rand.New(rand.NewPCG(o.Seed, uint64(n)))); err != nil {
				cancel(err)
			}
		})
	}
	for n := range o.Workers + 1 {
		killers.Go(func() {
			if err := r.killer(work, attack, enough, n, rand.New(rand.NewPCG(o.Seed, uint64(1000+n)))); err != nil {
				cancel(err)
			}
		})
	}
	killers.Wait()
	enough()
	lanes.Wait()
	r.ledger.Took = time.Since(begin).Round(time.Millisecond)
	if err := context.Cause(work); err != nil {
		return r.ledger, err
	}
	return r.ledger, r.leftOver()
}

// Ledger is the account at the end.
type Ledger struct {
	Seed   uint64         `json:"seed"`
	Took   time.Duration  `json:"-"`
	Killed map[string]int `json:"killed"` // by role

	Submitted int `json:"submitted"`
	Finished  int `json:"finished"` // with exit code 0
	Failed    int `json:"failed"`   // with the exit code that they should have
	Stopped   int `json:"stopped"`
	Lost      int `json:"lost"` // state LOST: nobody saw the exit
	Live      int `json:"live"` // that never came to an end

	BytesRead    uint64 `json:"bytes_read"`
	BytesMissing uint64 `json:"bytes_missing"`
	BytesChanged uint64 `json:"bytes_changed"`
	FalseCodes   int    `json:"false_codes"`
	DoubleStarts int    `json:"double_starts"`
	Processes    int    `json:"processes_left"`

	MinUnderWay int      `json:"min_under_way"` // fewest jobs under way when a daemon was killed
	Broken      []string `json:"broken"`        // what was wrong, one line each
}

// Good tells whether every promise was kept.
func (l *Ledger) Good() bool {
	return len(l.Broken) == 0 && l.Submitted == l.Finished+l.Failed+l.Stopped+l.Lost && l.Live == 0
}

// broke notes a broken promise.
func (r *run) broke(count func(*Ledger), format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.count(func(l *Ledger) {
		count(l)
		l.Broken = append(l.Broken, text)
	})
	r.say("%s", text)
}

func (r *run) count(f func(*Ledger)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.ledger)
}

// errOver ends a wait whose time is over.
var errOver = errors.New("it took too long")

// until tries again until ok, or the time is over.
func until(ctx context.Context, what string, ok func() (bool, error)) error {
	for end := time.Now().Add(patience); ; {
		good, err := ok()
		switch {
		case good:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(end):
			return fmt.Errorf("%s: %w", what, errors.Join(errOver, err))
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
