package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/droverhq/drover/core/errs"
)

const (
	// keptRoom of its memory is kept for the stops and ends of jobs that were accepted;
	// of a small Redis a tenth.
	keptRoom = 64 << 20
	// lookEvery bounds how often Redis is asked for its memory.
	lookEvery   = 200 * time.Millisecond
	lookTimeout = time.Second
)

// room is how much memory Redis had when it was asked.
type room struct {
	mu         sync.Mutex // guards what follows, and lets one ask at a time
	asked      time.Time
	used, most uint64 // bytes; a most of 0 has no end
}

// Room is an error when nothing new should be accepted: Redis refuses writes, or
// what is left of its memory is for the results of what was accepted already (P16).
func (s *Store) Room() error {
	const op = "use the store"
	if d, why := s.full.lasting(); why != nil {
		return errs.E(op, errs.Exhausted, "STORE_FULL", fmt.Errorf("its Redis has refused writes for %v: %w", d.Round(time.Second), why)).
			WithHint("give Redis what it asks for; running jobs go on")
	}
	if d, _ := s.trouble.lasting(); d > 0 {
		return nil // the submit waits for it, as all do
	}
	used, most := s.memory()
	kept := min(keptRoom, most/10)
	if most == 0 || used+kept <= most {
		return nil
	}
	return errs.E(op, errs.Exhausted, "STORE_FULL",
		fmt.Errorf("its Redis uses %d of %d MiB, and the last %d are kept for jobs that were accepted", used>>20, most>>20, kept>>20)).
		WithHint("give Redis more memory (maxmemory), or remove old jobs; running jobs go on")
}

// memory asks Redis, unless it did so a moment ago. What cannot be asked is found
// full by the write.
func (s *Store) memory() (used, most uint64) {
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.asked) < lookEvery {
		return r.used, r.most
	}
	r.asked = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	info, err := s.client.Info(ctx, "memory").Result()
	if err != nil {
		r.used, r.most = 0, 0
		return 0, 0
	}
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(field(info, name), 10, 64) // 0 when it is not told
		return n
	}
	r.used, r.most = number("\nused_memory:"), number("\nmaxmemory:")
	r.used -= min(r.used, number("\nmem_not_counted_for_evict:"))
	return r.used, r.most
}

// Trouble is an error while Redis does not answer.
func (s *Store) Trouble() error {
	d, why := s.trouble.lasting()
	if why == nil {
		return nil
	}
	if errors.Is(why, context.DeadlineExceeded) {
		why = errors.New("no answer in time")
	}
	return errs.E("use the store", errs.Unavailable, "STORE_UNREACHABLE",
		fmt.Errorf("its Redis at %s has not answered for %v: %w", s.config.Address, d.Round(time.Second), why)).
		WithHint("is Redis up, and may the scheduler's machine reach it? running jobs go on")
}
