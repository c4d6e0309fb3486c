package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

const (
	firstPage = 128 // pairs; most scans want a few
	nextPage  = 512
	pageBytes = 1 << 20 // after which a page ends
	// snapshotLife is how long a reader may take for one page. Nobody waits for
	// the end of it: batches save what they change for as long.
	snapshotLife   = 10 * time.Minute
	releaseTimeout = 2 * time.Second
)

// Scan implements store.Store. It reads in pages. A scan that one page does not
// satisfy makes a snapshot: until it is released, batches keep the old values of
// what they change beside it.
func (s *Store) Scan(ctx context.Context, r store.Range) iter.Seq2[store.Pair, error] {
	return func(yield func(store.Pair, error) bool) {
		c := &cursor{store: s, reverse: r.Reverse, min: "-", max: "+"}
		if len(r.From) > 0 {
			c.min = lower(r.From)
		}
		if r.To != nil {
			c.max = upper(r.To)
		}
		defer func() { c.release(ctx) }()
		for more := true; more; {
			var (
				pairs []store.Pair
				err   error
			)
			if pairs, more, err = c.page(ctx); err != nil {
				yield(store.Pair{}, err)
				return
			}
			for _, p := range pairs {
				if err := ctx.Err(); err != nil {
					yield(store.Pair{}, err)
					return
				}
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

// cursor is where a scan stands.
type cursor struct {
	store    *Store
	min, max string // bounds of what is left
	reverse  bool
	snapshot string // "" before the first page, and when that was the only one
	begun    bool
}

// page returns the next pairs and whether there may be more.
func (c *cursor) page(ctx context.Context) ([]store.Pair, bool, error) {
	first, most, id := 1, firstPage, c.snapshot
	if c.begun {
		first, most = 0, nextPage
	}
	out, err := c.store.run(ctx, opRead, c.store.scripts.page, func() []any {
		if first == 1 {
			// A name per try: when an answer gets lost, the snapshot that it told of
			// has begun earlier than the next try's.
			id = c.store.nonce + "." + strconv.FormatUint(c.store.scans.Add(1), 10)
		}
		return []any{id, first, c.min, c.max, flag(c.reverse), most, pageBytes, snapshotLife.Milliseconds()}
	})
	if err != nil {
		return nil, false, err
	}
	if out == "GONE" {
		return nil, false, errs.E(opRead, errs.Precondition, "SNAPSHOT_GONE", fmt.Errorf("nothing was read for %v", snapshotLife)).WithHint("begin again")
	}
	present, past, err := decodePage(out)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", opRead, err)
	}
	if c.begun = true; first == 1 && present.more {
		c.snapshot = id
	}
	pairs, last, more := merge(present, past, c.reverse)
	if more && c.reverse {
		c.max = upper(last)
	} else if more {
		c.min = upper(last) // "(" is exclusive on both sides
	}
	return pairs, more, nil
}

// release ends the snapshot. One that stays ends by itself.
func (c *cursor) release(ctx context.Context) {
	if c.snapshot == "" || c.store.usable(context.WithoutCancel(ctx)) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_ = c.store.scripts.release.Run(ctx, c.store.client, c.store.keys, c.snapshot).Err()
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// stretch is a run of pairs in scan order, whole up to its last key.
type stretch struct {
	pairs []store.Pair
	more  bool // whether there are some behind the last
}

func decodePage(answer any) (present, past stretch, err error) {
	parts, ok := answer.([]any)
	if !ok || len(parts) != 4 {
		return present, past, fmt.Errorf("an answer of %T", answer)
	}
	for i, to := range []*stretch{&present, &past} {
		more, _ := parts[2*i].(int64)
		flat, ok := parts[2*i+1].([]any)
		if !ok || len(flat)%2 != 0 {
			return present, past, errors.New("a list without values")
		}
		to.more, to.pairs = more == 1, make([]store.Pair, len(flat)/2)
		for n := range to.pairs {
			key, _ := flat[2*n].(string)
			value, _ := flat[2*n+1].(string)
			to.pairs[n] = store.Pair{Key: []byte(key), Value: []byte(value)}
			if to == &past && value == "" {
				return present, past, errors.New("a mark that says nothing")
			}
		}
		if to.more && len(to.pairs) == 0 {
			return present, past, errors.New("a list that goes on behind nothing")
		}
	}
	return present, past, nil
}

// merge returns what a snapshot holds as far as both stretches reach: the
// present, but with the marks of the past where something changed since. last
// is where the next page goes on.
func merge(present, past stretch, reverse bool) (pairs []store.Pair, last []byte, more bool) {
	before := func(a, b []byte) bool { return bytes.Compare(a, b) < 0 != reverse && !bytes.Equal(a, b) }
	for _, s := range []stretch{present, past} {
		if end := len(s.pairs) - 1; s.more && (!more || before(s.pairs[end].Key, last)) {
			last, more = s.pairs[end].Key, true
		}
	}
	within := func(p []store.Pair) bool { return len(p) > 0 && (!more || !before(last, p[0].Key)) }
	a, b := present.pairs, past.pairs
	for within(a) || within(b) {
		if !within(b) || within(a) && before(a[0].Key, b[0].Key) {
			pairs, a = append(pairs, a[0]), a[1:]
			continue
		}
		if within(a) && bytes.Equal(a[0].Key, b[0].Key) {
			a = a[1:]
		}
		if old := b[0].Value; old[0] == '+' {
			pairs = append(pairs, store.Pair{Key: b[0].Key, Value: old[1:]})
		}
		b = b[1:]
	}
	return pairs, last, more
}
