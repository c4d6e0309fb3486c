// Package store is the scheduler's durable memory: ordered keys and values
// behind one small interface, with atomic batches.
package store

import (
	"bytes"
	"context"
	"errors"
	"iter"
)

// ErrNotFound is returned by Get for a key that does not exist.
var ErrNotFound = errors.New("key not found")

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("store is closed")

// ErrFenced is returned by Apply for a batch with a guard that does not hold:
// somebody else has changed what the writer relies on.
var ErrFenced = errors.New("another writer has taken over the store")

// ErrLostWrites is in the error of a shared store that does not hold any more what
// it had acknowledged: it was emptied, restored or failed over. Nobody goes on
// with it unless an administrator accepts it as it is.
var ErrLostWrites = errors.New("the store does not hold any more what it had acknowledged")

// ReasonLostWrites is the reason of such an error.
const ReasonLostWrites = "STORE_LOST_WRITES"

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
	// are durable. When a guard does not hold it is ErrFenced and changes nothing.
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

// Guard is a condition of a batch: the key has the value, or does not exist if
// the value is nil.
type Guard struct {
	Key, Value []byte
}

// Holds tells whether the guard holds for what was found.
func (g Guard) Holds(value []byte, found bool) bool {
	return found == (g.Value != nil) && (!found || bytes.Equal(value, g.Value))
}

// Batch gathers changes; later ones win. It is used by one goroutine.
type Batch struct {
	Ops    []Op
	Guards []Guard // checked before the first change, in one step with all of them
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
