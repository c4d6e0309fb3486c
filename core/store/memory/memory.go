// Package memory is a store that forgets at the end of the process: for tests
// and for clusters that are thrown away.
package memory

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/droverhq/drover/core/store"
)

// Store implements store.Store.
type Store struct {
	mu     sync.RWMutex // guards root and closed; what root points to never changes
	root   *node
	closed bool
}

// New returns an empty store.
func New() *Store { return &Store{} }

// enter returns the tree as it is now.
func (s *Store) enter(ctx context.Context) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	return s.root, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key []byte) ([]byte, error) {
	n, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	if n = n.find(key); n == nil {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(n.value), nil
}

// Scan implements store.Store.
func (s *Store) Scan(ctx context.Context, r store.Range) iter.Seq2[store.Pair, error] {
	return func(yield func(store.Pair, error) bool) {
		root, err := s.enter(ctx)
		if err != nil {
			yield(store.Pair{}, err)
			return
		}
		root.walk(r, func(n *node) bool {
			if err := ctx.Err(); err != nil {
				yield(store.Pair{}, err)
				return false
			}
			return yield(store.Pair{Key: bytes.Clone(n.key), Value: bytes.Clone(n.value)}, nil)
		})
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
	for _, g := range b.Guards {
		n := s.root.find(g.Key)
		if n == nil && !g.Holds(nil, false) || n != nil && !g.Holds(n.value, true) {
			return store.ErrFenced
		}
	}
	for _, op := range b.Ops {
		switch {
		case op.To != nil:
			s.root = s.root.without(op.Key, op.To)
		case op.Delete:
			s.root = s.root.without(op.Key, after(op.Key))
		default:
			s.root = s.root.with(bytes.Clone(op.Key), bytes.Clone(op.Value))
		}
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.root = true, nil
	return nil
}
