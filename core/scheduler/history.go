package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// Keys of what tells an older copy of records from the records that workers were
// commanded by, however often it was started (P3).
const (
	livesKey   = "m/lives"
	secretKey  = "m/secret"
	decidedKey = "m/decided"
	newerKey   = "m/newer"
)

const secretBytes = 32

// history is what the records say, with the secret that marks are made with.
type history struct {
	job.History
	secret []byte
	newer  job.Life // of newer records, as a worker has told; zero: none is known of
}

// outdated reports whether the records are an older copy that nobody has accepted.
func (h *history) outdated() bool { return !h.Holds(h.newer) }

// begin adds the life of a term to the records. It is on disk before any worker hears
// of it.
func (r records) begin(ctx context.Context, term uint64) (h history, err error) {
	if h, err = r.history(ctx); err != nil {
		return h, err
	}
	var b store.Batch
	if len(h.secret) == 0 {
		h.secret = make([]byte, secretBytes)
		rand.Read(h.secret) // never fails: crypto/rand
		b.Put([]byte(secretKey), h.secret)
	}
	h.Add(job.NewLife(term, h.secret))
	b.Put([]byte(livesKey), job.EncodeLives(h.Lives))
	if err := r.store.Apply(ctx, &b); err != nil {
		return h, fmt.Errorf("record the life of this scheduler: %w", err)
	}
	return h, nil
}

func (r records) history(ctx context.Context) (h history, err error) {
	get := func(key string) []byte {
		v, e := r.store.Get(ctx, []byte(key))
		if e != nil && !errors.Is(e, store.ErrNotFound) && err == nil {
			err = fmt.Errorf("read %s: %w", key, e)
		}
		return v
	}
	lives, decided, newer := get(livesKey), get(decidedKey), get(newerKey)
	if h.secret = get(secretKey); err != nil {
		return h, err
	}
	if l, err := job.DecodeLives(newer); err != nil {
		return h, err
	} else if len(l) > 0 {
		h.newer = l[0]
	}
	if h.Lives, err = job.DecodeLives(lives); err != nil {
		return h, err
	}
	if len(decided) > 0 {
		h.Decided, err = store.DecodeTerm(decided)
	}
	return h, err
}

// OldRecords says that a worker was commanded by a later life of these records than
// they hold: they are an older copy.
type OldRecords struct {
	Worker job.WorkerID
	Last   job.Life
}

// oldRecords stops everything that an older copy would begin anew: what it holds as
// waiting may have run. What runs is left to the newer records (P3). It is recorded, so
// that a restart does not start anything before a worker has told it again.
func (m *Machine) oldRecords(o *OldRecords) {
	w, _ := m.workers.Get(o.Worker)
	if m.old == "" {
		m.setOld(&o.Last, "the worker "+w.Name)
		m.effect(Effect{Old: m.old, Newer: o.Last})
		m.dirty = true
	}
	if m.workers.SetTrouble(o.Worker, m.wall(), registry.OldRecords, "it was commanded by newer records than this scheduler has, and refuses it") {
		m.changed(o.Worker)
	}
}

// setOld notes that the records are older than a life that somebody was told.
func (m *Machine) setOld(newer *job.Life, told string) {
	m.old = fmt.Sprintf("these records are older than what %s was told (life %s): nothing is started", told, newer)
}
