package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/core/scheduler"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Pauses between what came back and the next kill, the least and what chance
// adds: a daemon that is back looks after what the killed one has left.
const (
	longestDelay  = 10 * time.Second // of a heartbeat, for a worker that got its old port again
	restLeast     = 200 * time.Millisecond
	restWorker    = 800 * time.Millisecond
	restScheduler = 3 * time.Second
	drained       = 2 * time.Second // in which a plugin that was killed is replaced, if it had jobs
)

// killer kills one daemon at a time: number 0 the scheduler, number n the n-th
// worker or its bash plugin. It goes on when that daemon is back, so each host
// has one wound at a time, and several hosts and the scheduler may have theirs.
func (r *run) killer(ctx, attack context.Context, enough func(), number int, random *rand.Rand) error {
	for {
		rest := restWorker
		if number == 0 {
			rest = restScheduler
		}
		pause(attack, restLeast+time.Duration(random.Int64N(int64(rest))))
		if over := attack.Err() != nil || ctx.Err() != nil; over {
			return nil
		}
		victim := "scheduler"
		if number > 0 {
			victim = "w" + strconv.Itoa(number)
			if random.IntN(2) == 0 {
				victim += "/bash"
			}
		}
		if err := r.kill(ctx, victim, random); err != nil {
			return err
		}
		total := 0
		r.count(func(l *Ledger) {
			for _, n := range l.Killed {
				total += n
			}
		})
		if r.Kills > 0 && total >= r.Kills {
			enough()
		}
	}
}

// kill kills a daemon and waits until it, or what takes its place, is back.
func (r *run) kill(ctx context.Context, name string, random *rand.Rand) error {
	down := time.Duration(random.Int64N(int64(500 * time.Millisecond)))
	role := "worker"
	if name == "scheduler" {
		role = name
	} else if strings.Contains(name, "/") {
		role = "plugin"
	}
	seen, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	victim := seen[random.IntN(len(seen))]
	before, err := r.address(ctx, name, role)
	if err != nil {
		return err
	}
	if err := victim.Kill(); err != nil {
		return err
	}
	// Until it is gone it would not be missed, and nobody would start it again.
	if err := until(ctx, "wait for the end of "+name, func() (bool, error) { return !victim.Alive(), nil }); err != nil {
		return err
	}
	r.count(func(l *Ledger) {
		l.Killed[role]++
		l.MinUnderWay = min(l.MinUnderWay, r.under)
	})
	if role == "plugin" { // the worker starts another one
		killed := time.Now()
		return until(ctx, "wait for the plugin "+name, func() (bool, error) {
			now, err := r.find(ctx, name)
			fresh := slices.ContainsFunc(now, func(p dev.Process) bool { return !slices.Contains(seen, p) })
			// One that drained and had no job any more has no successor.
			return err == nil && (fresh || len(seen) > 1 && time.Since(killed) > drained), err
		})
	}
	pause(ctx, down)
	if err := r.revive(ctx); err != nil {
		return err
	}
	if role == "scheduler" {
		return until(ctx, "wait for the scheduler", func() (bool, error) {
			_, err := r.api.ListWorkers(ctx, &droverv1.ListWorkersRequest{})
			return err == nil, err
		})
	}
	revived := time.Now()
	return until(ctx, "wait for the worker "+name, func() (bool, error) {
		got, err := r.api.GetWorker(ctx, &droverv1.GetWorkerRequest{WorkerId: name})
		w := got.GetWorker()
		// A busy scheduler may hear a heartbeat of the dead process late: a lease that
		// was renewed after the kill proves nothing. The new one listens elsewhere.
		renewed := w.GetLeaseExpires().AsTime().Add(-scheduler.DefaultLease)
		fresh := w.GetAddress() != before || renewed.After(revived.Add(longestDelay))
		return err == nil && fresh && w.GetState() == droverv1.WorkerState_WORKER_STATE_ONLINE, err
	})
}

// address is where a worker listens; "" for other roles.
func (r *run) address(ctx context.Context, name, role string) (at string, err error) {
	if role != "worker" {
		return "", nil
	}
	err = until(ctx, "ask for the worker "+name, func() (bool, error) {
		got, err := r.api.GetWorker(ctx, &droverv1.GetWorkerRequest{WorkerId: name})
		at = got.GetWorker().GetAddress()
		return err == nil, err
	})
	return at, err
}

// find waits for a daemon to live. There may be several processes of a plugin: those
// of earlier workers end after the last job that they have.
func (r *run) find(ctx context.Context, name string) (all []dev.Process, err error) {
	err = until(ctx, "look for "+name, func() (bool, error) {
		r.daemons.Lock()
		defer r.daemons.Unlock()
		s, err := r.cluster.Status()
		all = slices.DeleteFunc(s.Processes, func(p dev.Process) bool { return p.Name != name })
		return err == nil && len(all) > 0, err
	})
	return all, err
}

func (r *run) revive(ctx context.Context) error {
	r.daemons.Lock()
	defer r.daemons.Unlock()
	if err := r.cluster.Revive(ctx); err != nil {
		return fmt.Errorf("start what was killed: %w", err)
	}
	return nil
}
