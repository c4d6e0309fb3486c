package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/standby"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
)

// onShared acts on a store that other schedulers can reach. With --standby it
// waits for its turn; otherwise it takes the store from whoever has it, for that
// is what an operator who starts it wants.
func (d *schedulerDaemon) onShared(ctx context.Context) (err error) {
	db, err := openRedis(ctx, d.Store, filepath.Join(d.Data, seenFile), d.Getenv, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := store.CheckCluster(ctx, db, d.cluster()); err != nil {
		return err // before anything is taken from a scheduler of that cluster
	}
	policy := standby.Policy{TTL: d.Takeover, Outlive: !d.Standby}
	if !d.Standby {
		l, err := db.Seize(ctx, d.address, d.Takeover)
		if err != nil {
			return err
		}
		err = standby.Hold(ctx, l, policy, func(ctx context.Context) error {
			return d.actOn(ctx, db, l.Term(), nil, func() {})
		})
		if errors.Is(err, standby.ErrLost) && !errors.Is(err, store.ErrLostWrites) { // P3
			return errs.E("act as the scheduler", errs.Precondition, "FENCED", err).
				WithHint("a newer scheduler uses these records; run one only, or all of them with --standby")
		}
		return err
	}
	t := &turns{schedulerDaemon: d, db: db, quiet: func() {}}
	defer func() { t.quiet() }()
	return standby.Run(ctx, standby.Config{Policy: policy, Await: t.await, Act: t.act, Log: d.log})
}

func (d *schedulerDaemon) cluster() store.Cluster {
	return store.Cluster{Name: d.source.ID().Cluster, CAs: d.source.Authorities()}
}

// actOn is one life of a scheduler on a store that others can reach.
func (d *schedulerDaemon) actOn(ctx context.Context, db *redis.Store, term uint64, may func() error, begin func()) error {
	if err := store.Claim(ctx, store.Fence(db, term), d.cluster()); err != nil {
		return err
	}
	return d.act(ctx, scheduler.Config{Store: db, Term: term, Trouble: db.Trouble}, may, begin)
}

// turns are the times between standing by and acting.
type turns struct {
	*schedulerDaemon
	db       *redis.Store
	active   atomic.Pointer[string] // address of who is active
	refusing bool
	quiet    func() // ends the server that refuses, if it runs
}

// await refuses every call until this scheduler has the lease, and after that
// until it has loaded its records.
func (t *turns) await(ctx context.Context) (standby.Lease, error) {
	if err := t.refuse(); err != nil {
		return nil, err
	}
	l, err := t.db.Await(ctx, t.address, t.Takeover, func(active string) {
		t.active.Store(&active)
		t.log.Info("standing by", "address", t.port.Address(), "active", active)
	})
	if err != nil {
		return nil, err
	}
	t.log.Info("taking over", "term", l.Term())
	return l, nil
}

// refuse starts the server that refuses, unless it runs.
func (t *turns) refuse() error {
	if t.refusing {
		return nil
	}
	t.refusing = true
	t.active.Store(new(string))
	server := t.port.Refusing(t.serving(func() error { return standby.Refusal(*t.active.Load(), t.db.Trouble()) }))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.quiet = func() {
		server.Cut()
		cancel()
		if err := <-done; err != nil {
			t.log.Error("the server of the standby failed", "error", err)
		}
		t.refusing, t.quiet = false, func() {}
	}
	return t.tellAddress()
}

func (t *turns) act(ctx context.Context, held standby.Lease) error {
	l, ok := held.(*redis.Lease)
	if !ok {
		panic("unreachable: a lease that await did not return")
	}
	return t.actOn(ctx, t.db, l.Term(), func() error { return standby.Awake(l) }, func() { t.quiet() })
}
