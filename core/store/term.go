package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// TermKey is where a store keeps the term of the newest writer: 8 bytes,
// big-endian.
func TermKey() []byte { return []byte("m/term") }

// EncodeTerm is the value of TermKey.
func EncodeTerm(term uint64) []byte { return binary.BigEndian.AppendUint64(nil, term) }

// Term reads the term of the newest writer; 0 of a store that had none.
func Term(ctx context.Context, s Store) (uint64, error) {
	v, err := s.Get(ctx, TermKey())
	switch {
	case errors.Is(err, ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read the term: %w", err)
	}
	return DecodeTerm(v)
}

// DecodeTerm reads what EncodeTerm wrote.
func DecodeTerm(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("read the term: %d bytes instead of 8", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// RaiseTerm makes a term that is higher than any before, durably, and that no
// other writer gets (P3).
func RaiseTerm(ctx context.Context, s Store) (uint64, error) {
	for {
		term, err := Term(ctx, s)
		if err != nil {
			return 0, err
		}
		var b Batch
		b.Guards = []Guard{termGuard(term)}
		b.Put(TermKey(), EncodeTerm(term+1))
		err = s.Apply(ctx, &b)
		if errors.Is(err, ErrFenced) {
			continue // another writer raised it in between
		}
		if err != nil {
			return 0, fmt.Errorf("raise the term: %w", err)
		}
		return term + 1, nil
	}
}

// termGuard holds while term is the newest.
func termGuard(term uint64) Guard {
	if term == 0 {
		return Guard{Key: TermKey()}
	}
	return Guard{Key: TermKey(), Value: EncodeTerm(term)}
}

// Fence returns the store for the writer of one term: once a higher term was
// raised, every Apply is ErrFenced and changes nothing (P3).
func Fence(s Store, term uint64) Store { return &fenced{s, termGuard(term)} }

type fenced struct {
	Store
	guard Guard
}

// Apply implements Store.
func (f *fenced) Apply(ctx context.Context, b *Batch) error {
	return f.Store.Apply(ctx, &Batch{Ops: b.Ops, Guards: append(slices.Clone(b.Guards), f.guard)})
}
