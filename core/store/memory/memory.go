// Package memory is a store that forgets at the end of the process: for tests
// and for clusters that are thrown away.
package memory

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"sync"

	"github.com/droverhq/drover/core/store"
)

// Store implements store.Store.
type Store struct {
	mu     sync.RWMutex // guards pairs and closed
	pairs  []store.Pair // by key; pairs and their slices are never written in place
	closed bool
}

// New returns an empty store.
func New() *Store { return &Store{} }

func (s *Store) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(s.pairs, key, func(p store.Pair, k []byte) int { return bytes.Compare(p.Key, k) })
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	i, ok := s.find(key)
	if !ok {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(s.pairs[i].Value), nil
}

// Scan implements store.Store.
func (s *Store) Scan(ctx context.Context, r store.Range) iter.Seq2[store.Pair, error] {
	return func(yield func(store.Pair, error) bool) {
		s.mu.RLock()
		from, to := 0, len(s.pairs)
		if r.From != nil {
			from, _ = s.find(r.From)
		}
		if r.To != nil {
			to, _ = s.find(r.To)
		}
		picked := slices.Clone(s.pairs[from:max(from, to)])
		closed := s.closed
		s.mu.RUnlock()
		if closed {
			yield(store.Pair{}, store.ErrClosed)
			return
		}
		if r.Reverse {
			slices.Reverse(picked)
		}
		for _, p := range picked {
			if err := ctx.Err(); err != nil {
				yield(store.Pair{}, err)
				return
			}
			if !yield(store.Pair{Key: bytes.Clone(p.Key), Value: bytes.Clone(p.Value)}, nil) {
				return
			}
		}
	}
}

// Apply implements store.Store, as far as memory is durable.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	for _, op := range b.Ops {
		i, found := s.find(op.Key)
		switch {
		case op.To != nil:
			to, _ := s.find(op.To)
			s.pairs = slices.Delete(s.pairs, i, max(i, to))
		case op.Delete && found:
			s.pairs = slices.Delete(s.pairs, i, i+1)
		case op.Delete:
		case found:
			s.pairs[i] = store.Pair{Key: s.pairs[i].Key, Value: bytes.Clone(op.Value)}
		default:
			s.pairs = slices.Insert(s.pairs, i, store.Pair{Key: bytes.Clone(op.Key), Value: bytes.Clone(op.Value)})
		}
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}
