package scheduler

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// Keys of the store, by their first byte:
//
//	j<id>            record of every job, JSON
//	l<id>            marks a live job
//	i<id>            input of a live job: stdin, upload, values of secrets
//	r<owner>\0<id>  what a request id was used for (P1)
//	s<hex of id, reversed>  finds jobs by the end of their id
//	w<id>            record of every worker, JSON
//	f<worker id><job id><attempt>  the record of the job was removed, and the worker has
//	                 not confirmed yet that it has forgotten the attempt
//	m/term           the term of the newest scheduler life, see store.TermKey
//	m/cluster        whose a shared store is, see store.ClusterKey
//	m/lives          all lives, m/secret what they are marked with, m/decided the
//	                 term that an operator has set, m/newer a life of newer records,
//	                 see history.go
const (
	prefixJob     = 'j'
	prefixLive    = 'l'
	prefixInput   = 'i'
	prefixRequest = 'r'
	prefixSuffix  = 's'
	prefixWorker  = 'w'
	prefixForget  = 'f'
)

// How load reads: parts of so many records, by so many readers.
const (
	loadAtOnce = 1024
	loaders    = 8
)

func idKey(prefix byte, id [16]byte) []byte { return append([]byte{prefix}, id[:]...) }

func requestRecord(key string) []byte { return append([]byte{prefixRequest}, key...) }

func suffixKey(id job.ID) []byte {
	digits := []byte(hex.EncodeToString(id[:]))
	slices.Reverse(digits)
	return append([]byte{prefixSuffix}, digits...)
}

// recordRoom is enough for most records.
const recordRoom = 1 << 10

// records is the scheduler's view of its store.
type records struct {
	store store.Store
}

// SetTerm makes term the one of the next scheduler life on a store that no
// scheduler uses: the way to let a restored copy command workers that have seen
// a newer one (P3).
func SetTerm(ctx context.Context, st store.Store, term uint64) error {
	if term == 0 {
		return errs.Field("set the term", "term", "TERM", "0 is not above 0")
	}
	var b store.Batch
	b.Put(store.TermKey(), store.EncodeTerm(term-1))
	b.Put([]byte(decidedKey), store.EncodeTerm(term))
	if err := st.Apply(ctx, &b); err != nil {
		return fmt.Errorf("set the term: %w", err)
	}
	return nil
}

// load calls the functions for every worker, and for all live jobs in parts. While
// one part is taken up the next is read: both are work for a processor.
func (r records) load(ctx context.Context, worker func(registry.Worker), live func([]*job.Job)) error {
	for p, err := range r.store.Scan(ctx, store.Prefix([]byte{prefixWorker})) {
		if err != nil {
			return fmt.Errorf("load workers: %w", err)
		}
		var w registry.Worker
		if err := json.Unmarshal(p.Value, &w); err != nil {
			return fmt.Errorf("load worker %x: %w", p.Key[1:], err)
		}
		worker(w)
	}
	parts, failed := make(chan []*job.Job), make(chan error, 1)
	go func() {
		defer close(parts)
		failed <- r.readLive(ctx, parts)
	}()
	for jobs := range parts {
		live(jobs)
	}
	return <-failed
}

// readLive sends all live jobs.
func (r records) readLive(ctx context.Context, parts chan<- []*job.Job) error {
	ids := make([]job.ID, 0, loadAtOnce)
	for p, err := range r.store.Scan(ctx, store.Prefix([]byte{prefixLive})) {
		if err != nil {
			return fmt.Errorf("load live jobs: %w", err)
		}
		if ids = append(ids, job.ID(p.Key[1:])); len(ids) < loadAtOnce {
			continue
		}
		if err := r.readJobs(ctx, ids, parts); err != nil {
			return err
		}
		ids = ids[:0]
	}
	return r.readJobs(ctx, ids, parts)
}

// readJobs reads several jobs at a time: the store may be on another machine.
func (r records) readJobs(ctx context.Context, ids []job.ID, parts chan<- []*job.Job) error {
	var (
		jobs     = make([]*job.Job, len(ids))
		failures [loaders]error
		wait     sync.WaitGroup
	)
	for l := range loaders {
		wait.Go(func() {
			for i := l; i < len(ids) && failures[l] == nil; i += loaders {
				jobs[i], failures[l] = r.liveJob(ctx, ids[i])
			}
		})
	}
	wait.Wait()
	if err := errors.Join(failures[:]...); err != nil {
		return err
	}
	parts <- jobs
	return nil
}

func (r records) job(ctx context.Context, id job.ID) (*job.Job, error) {
	v, err := r.store.Get(ctx, idKey(prefixJob, id))
	if err != nil {
		return nil, fmt.Errorf("read job %s: %w", id, err)
	}
	return decodeJob(v)
}

// ofFrame adds to a frame what the store has of the attempts in it.
func (r records) ofFrame(ctx context.Context, m *Machine, ev *UpEvent) (err error) {
	for _, key := range m.Ended(ev) {
		j, err := r.job(ctx, key.Job)
		if errors.Is(err, store.ErrNotFound) && m.owing[ev.Worker] {
			err = r.ofRemoved(ctx, ev, key)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if j == nil {
			continue
		}
		if ev.Records == nil {
			ev.Records = map[job.ID]*job.Job{}
		}
		ev.Records[key.Job] = j
	}
	if from, ok := m.Owed(ev); ok {
		ev.Owed, err = r.owed(ctx, ev.Worker, from)
	}
	return err
}

func decodeJob(v []byte) (*job.Job, error) {
	j := new(job.Job)
	if err := json.Unmarshal(v, j); err != nil {
		return nil, fmt.Errorf("decode a job: %w", err)
	}
	return j, nil
}

func (r records) accepted(ctx context.Context, key string) (*Accepted, error) {
	v, err := r.store.Get(ctx, requestRecord(key))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil //nolint:nilnil // no request is a fine answer
	}
	if err != nil {
		return nil, fmt.Errorf("look up the request id: %w", err)
	}
	a, err := decodeAccepted(v)
	if err != nil {
		return nil, fmt.Errorf("look up the request id: %w", err)
	}
	return a, nil
}

func decodeAccepted(v []byte) (*Accepted, error) {
	if len(v) != 48 {
		return nil, fmt.Errorf("a record of %d bytes instead of 48", len(v))
	}
	return &Accepted{Job: job.ID(v[:16]), Hash: [32]byte(v[16:])}, nil
}

// putRound adds the record changes of a round to a batch. Of several records of
// one job only the last is written: nobody has seen those before it yet.
func putRound(b *store.Batch, effects []Effect) error {
	last, gone := make(map[job.ID]int, len(effects)), map[job.ID]bool{}
	for i := range effects {
		switch e := &effects[i]; {
		case e.Put != nil:
			last[e.Put.ID] = i
		case e.Delete != nil:
			gone[e.Delete.ID] = true
		}
	}
	for i := range effects {
		e := &effects[i]
		if e.Put != nil && e.Amend && gone[e.Put.ID] {
			continue
		}
		if e.Put != nil && last[e.Put.ID] != i {
			if e.New {
				putIndexes(b, e)
			}
			continue
		}
		if err := putEffect(b, e); err != nil {
			return err
		}
	}
	return nil
}

// putEffect adds one effect's record changes to a batch.
func putEffect(b *store.Batch, e *Effect) error {
	switch {
	case e.Put != nil:
		return putJob(b, e)
	case e.Delete != nil:
		b.Delete(idKey(prefixJob, e.Delete.ID))
		b.Delete(suffixKey(e.Delete.ID))
		if e.Delete.RequestID != "" {
			b.Delete(requestRecord(requestKey(owner(e.Delete), e.Delete.RequestID)))
		}
	case e.Owe != nil:
		for _, key := range e.Owe.Keys {
			b.Put(forgetKey(e.Owe.Worker, key), nil)
		}
	case e.Forgot != nil:
		for _, key := range e.Forgot.Keys {
			b.Delete(forgetKey(e.Forgot.Worker, key))
		}
	case e.Old != "":
		b.Put([]byte(newerKey), job.EncodeLives([]job.Life{e.Newer}))
	case e.Keep != nil:
		b.Put(idKey(prefixInput, e.Keep.Job), encodeInput(&e.Keep.Input))
	case e.Release != nil:
		b.Delete(idKey(prefixInput, *e.Release))
	case e.Worker != nil:
		w := *e.Worker
		w.Scripts, w.Running, w.Trouble, w.Unrecorded = job.ScriptIndex{}, 0, job.Condition{}, nil // found out anew
		v, err := json.Marshal(&w)
		if err != nil {
			return fmt.Errorf("encode worker %s: %w", w.ID, err)
		}
		b.Put(idKey(prefixWorker, w.ID), v)
	case e.Gone != nil:
		b.Delete(idKey(prefixWorker, *e.Gone))
		of := store.Prefix(idKey(prefixForget, *e.Gone))
		b.DeleteRange(of.From, of.To)
	}
	return nil
}

func putJob(b *store.Batch, e *Effect) error {
	j := e.Put
	v, err := appendJSON(make([]byte, 0, recordRoom), reflect.ValueOf(j).Elem())
	if err != nil {
		return fmt.Errorf("encode job %s: %w", j.ID, err)
	}
	b.Put(idKey(prefixJob, j.ID), v)
	if e.New {
		putIndexes(b, e)
	}
	if e.Drop {
		b.Delete(idKey(prefixLive, j.ID))
	}
	return nil
}

// putIndexes adds what finds a new job.
func putIndexes(b *store.Batch, e *Effect) {
	j := e.Put
	b.Put(idKey(prefixLive, j.ID), nil)
	b.Put(suffixKey(j.ID), j.ID[:])
	if j.RequestID != "" {
		b.Put(requestRecord(requestKey(owner(j), j.RequestID)), append(j.ID[:], e.Hash[:]...))
	}
}
