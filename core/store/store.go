// Package store is the scheduler's durable memory: ordered keys and values
// behind one small interface, with atomic batches.
package store

import (
	"context"
	"errors"
	"iter"
)

// ErrNotFound is returned by Get for a key that does not exist.
var ErrNotFound = errors.New("key not found")

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("store is closed")

// Range selects keys: From inclusive, To exclusive. A nil bound is open.
type Range struct {
	From, To []byte
	Reverse  bool // greatest key first
}

// Pair is one key with its value. The slices are the caller's own.
type Pair struct {
	Key, Value []byte
}

// Store keeps pairs in key order. Implementations pass storetest.Run. All
// methods may be called concurrently.
type Store interface {
	// Get returns the value of a key, or ErrNotFound.
	Get(ctx context.Context, key []byte) ([]byte, error)
	// Scan yields pairs as they were when the scan began. After an error it ends.
	Scan(ctx context.Context, r Range) iter.Seq2[Pair, error]
	// Apply makes all changes of a batch or none of them, and returns when they
	// are durable.
	Apply(ctx context.Context, b *Batch) error
	// Close releases the store.
	Close() error
}

// Op is one change of a batch.
type Op struct {
	Key    []byte
	Value  []byte // of a put
	To     []byte // of a range delete: Key inclusive, To exclusive
	Delete bool
}

// Batch gathers changes; later ones win. It is used by one goroutine.
type Batch struct {
	Ops []Op
}

// Put sets a key.
func (b *Batch) Put(key, value []byte) { b.Ops = append(b.Ops, Op{Key: key, Value: value}) }

// Delete removes a key; a missing one is no error.
func (b *Batch) Delete(key []byte) { b.Ops = append(b.Ops, Op{Key: key, Delete: true}) }

// DeleteRange removes every key from from (inclusive) to to (exclusive).
func (b *Batch) DeleteRange(from, to []byte) {
	b.Ops = append(b.Ops, Op{Key: from, To: to, Delete: true})
}

// Prefix is the range of all keys that begin with p.
func Prefix(p []byte) Range {
	to := append([]byte(nil), p...)
	for i := len(to) - 1; i >= 0; i-- {
		if to[i]++; to[i] != 0 {
			return Range{From: p, To: to[:i+1]}
		}
	}
	return Range{From: p}
}
