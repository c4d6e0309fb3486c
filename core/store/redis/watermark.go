package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

// saveEvery is how far the file of a watermark may be behind.
const saveEvery = time.Second

// mark is how new a store is: writes count from 0, and an epoch begins when an
// administrator accepts the store as it is.
type mark struct {
	Epoch  uint64 `json:"epoch"`
	Writes uint64 `json:"writes"`
}

func (m mark) less(n mark) bool {
	return m.Epoch < n.Epoch || m.Epoch == n.Epoch && m.Writes < n.Writes
}

// watermark is the newest mark that this scheduler has seen, also while it stood
// by, and also in its lives before. A store with a lower one is an older copy,
// or a replica that had not received everything (P1, P3).
type watermark struct {
	file  string // "": it is not kept
	store string // which one, in the file
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	seen   mark
	saved  mark
	timer  *time.Timer // nil: none is due
	closed bool
}

// kept is what the file holds.
type kept struct {
	Store string `json:"store"`
	mark
}

func (w *watermark) load() {
	if w.file == "" {
		return
	}
	text, err := os.ReadFile(w.file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		w.log.Error("cannot read how new the store was; an older copy of it may go unnoticed until workers are back", "file", w.file, "error", err)
		return
	}
	if k.Store == w.store {
		w.seen, w.saved = k.mark, k.mark
	}
}

// args are what a script is told.
func (w *watermark) args() (epoch, writes any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.Epoch, w.seen.Writes
}

// note takes down what a script answered.
func (w *watermark) note(m mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.seen.less(m) {
		return
	}
	w.seen = m
	if w.file != "" && w.timer == nil && !w.closed {
		w.timer = time.AfterFunc(saveEvery, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.timer = nil
			w.save()
		})
	}
}

// save writes the file; the caller holds the lock.
func (w *watermark) save() {
	if w.file == "" || w.saved == w.seen {
		return
	}
	text, err := json.Marshal(kept{w.store, w.seen})
	if err == nil {
		err = os.WriteFile(w.file+".new", append(text, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(w.file+".new", w.file)
	}
	if err != nil {
		w.log.Error("cannot write how new the store is", "file", w.file, "error", err)
	}
	w.saved = w.seen
}

func (w *watermark) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.save()
}

// lost is the error of a store that is older than what was seen of it.
func (w *watermark) lost(op string, now mark) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.save() // who starts next knows it, too
	why := fmt.Errorf("%w: it had %d writes, and has %d", store.ErrLostWrites, w.seen.Writes, now.Writes)
	if now.Epoch != w.seen.Epoch {
		why = fmt.Errorf("%w: it was accepted at %v, and does not know that", store.ErrLostWrites, time.UnixMilli(int64(w.seen.Epoch)).UTC().Format(time.RFC3339))
	} else if !now.less(w.seen) {
		why = fmt.Errorf("%w: the last batch of this scheduler is gone", store.ErrLostWrites)
	}
	return errs.E(op, errs.Precondition, store.ReasonLostWrites, why).
		WithHint("Redis was emptied, restored or failed over; give it its newest files and start again, or go on with what is there: drover store accept URL")
}

// answer splits what a script returned.
func (s *Store) answer(op string, out any) (word string, rest []any, err error) {
	parts, ok := out.([]any)
	if !ok || len(parts) < 3 {
		return "", nil, fmt.Errorf("%s: Redis answered %v", op, out)
	}
	epoch, ok1 := parts[0].(int64)
	writes, ok2 := parts[1].(int64)
	word, ok3 := parts[2].(string)
	if !ok1 || !ok2 || !ok3 || epoch < 0 || writes < 0 {
		return "", nil, fmt.Errorf("%s: Redis answered %v", op, out)
	}
	now := mark{uint64(epoch), uint64(writes)}
	if word == "LOST" {
		return "", nil, s.watermark.lost(op, now)
	}
	s.watermark.note(now)
	return word, parts[3:], nil
}

// Accept makes the store, however old, the one that every scheduler goes on with.
// termsAhead are added to its term, so that workers obey although they have seen
// newer ones. anyCluster forgets which cluster it belongs to. While a scheduler is active the
// error is Precondition, reason ReasonHeld.
func (s *Store) Accept(ctx context.Context, termsAhead uint64, anyCluster bool) error {
	const op = "accept the store"
	cluster := ""
	if anyCluster {
		cluster = string(store.ClusterKey())
	}
	for {
		term, err := store.Term(ctx, s)
		if err != nil {
			return err
		}
		var ahead []byte
		if termsAhead > 0 {
			ahead = store.EncodeTerm(term + termsAhead)
		}
		out, err := s.run(ctx, op, s.scripts.accept, func() []any {
			return []any{time.Now().UnixMilli(), store.TermKey(), termMark(term), ahead, cluster}
		})
		if err != nil {
			return err
		}
		word, rest, err := s.answer(op, out)
		switch {
		case err != nil:
			return err
		case word == "OK":
			return nil
		case word == "HELD":
			return heldBy(op, rest)
		case word != "TERM":
			return fmt.Errorf("%s: Redis answered %v", op, out)
		}
	}
}

// AtRest makes sure that no scheduler is active and that the records are whole as
// far as Redis can tell, and returns the number of writes: what is read between
// two of the same number was at rest.
func (s *Store) AtRest(ctx context.Context) (writes uint64, err error) {
	const op = "copy the store"
	var (
		left         time.Duration
		keys, values int64
	)
	if err := s.try(ctx, opRead, func(ctx context.Context) error {
		pipe := s.client.TxPipeline()
		ttl, zcard, hlen, count := pipe.PTTL(ctx, s.keys[4]), pipe.ZCard(ctx, s.keys[0]), pipe.HLen(ctx, s.keys[1]), pipe.HGet(ctx, s.keys[5], "writes")
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		left, keys, values = ttl.Val(), zcard.Val(), hlen.Val()
		writes, _ = strconv.ParseUint(count.Val(), 10, 64) // none yet: 0
		return nil
	}); err != nil {
		return 0, err
	}
	if left > 0 {
		return 0, errs.E(op, errs.Precondition, "STORE_IN_USE", fmt.Errorf("a scheduler is active on %s", s.config.Address)).
			WithHint("end it first; of one that was killed the store is free after %v", left.Round(time.Second))
	}
	if keys != values {
		return 0, errs.E(op, errs.Precondition, reasonDamaged, fmt.Errorf("%s has %d keys, and %s has %d values", s.keys[0], keys, s.keys[1], values)).
			WithHint("something else than drover has changed it; restore a backup")
	}
	return writes, nil
}
