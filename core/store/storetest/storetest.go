// Package storetest is the specification of store.Store as tests that every
// engine passes.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/droverhq/drover/core/store"
)

// Engine makes stores for the suite.
type Engine struct {
	// Open opens the store of a folder; opening it again after Close finds what
	// was there.
	Open func(t *testing.T, dir string) store.Store
	// Forgets is set for engines that keep nothing over a Close.
	Forgets bool
}

// Run runs the suite.
func Run(t *testing.T, e Engine) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Engine){
		"get what was put":              getPut,
		"scan in order, both ways":      scanOrder,
		"a batch is whole, later wins":  batchOrder,
		"delete ranges":                 deleteRange,
		"a scan is a snapshot":          scanSnapshot,
		"concurrent batches all arrive": concurrent,
		"large values":                  large,
		"closed and cancelled":          closed,
		"survives a reopen":             reopen,
		"callers own their slices":      ownership,
		"readers see whole batches":     wholeBatches,
		"an ended context ends a scan":  scanEnds,
		"random batches, like a map":    likeAMap,
		"keys of any bytes":             anyBytes,
		"a scan of many is a snapshot":  scanMany,
		"guards decide on all":          guards,
		"an older term is fenced":       fenced,
		"a term is given out once":      terms,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, e)
		})
	}
}

func apply(t *testing.T, s store.Store, change func(*store.Batch)) {
	t.Helper()
	var b store.Batch
	change(&b)
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, s store.Store, keys ...string) {
	t.Helper()
	apply(t, s, func(b *store.Batch) {
		for _, k := range keys {
			b.Put([]byte(k), []byte("v"+k))
		}
	})
}

func scan(t *testing.T, s store.Store, r store.Range) []string {
	t.Helper()
	var out []string
	for p, err := range s.Scan(t.Context(), r) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(p.Key)+"="+string(p.Value))
	}
	return out
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func getPut(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "a")
	if v, err := s.Get(t.Context(), []byte("a")); err != nil || string(v) != "va" {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := s.Get(t.Context(), []byte("b")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing key: %v", err)
	}
}

func scanOrder(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "b", "a", "d", "c", "c\xff", "c\xff\xff")
	want(t, scan(t, s, store.Range{From: []byte("b"), To: []byte("c\xff")}), "b=vb", "c=vc")
	want(t, scan(t, s, store.Range{To: []byte("c"), Reverse: true}), "b=vb", "a=va")
	want(t, scan(t, s, store.Prefix([]byte("c\xff"))), "c\xff=vc\xff", "c\xff\xff=vc\xff\xff")
	want(t, scan(t, s, store.Range{From: []byte("x"), To: []byte("a")}))
	for _, err := range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		break // an abandoned scan holds nothing
	}
}

func batchOrder(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "a")
	apply(t, s, func(b *store.Batch) {
		b.Delete([]byte("a"))
		b.Put([]byte("a"), []byte("2"))
		b.Put([]byte("b"), []byte("1"))
		b.Delete([]byte("b"))
		b.Delete([]byte("never"))
	})
	want(t, scan(t, s, store.Range{}), "a=2")
}

func deleteRange(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "a", "b", "c", "d")
	apply(t, s, func(b *store.Batch) {
		b.DeleteRange([]byte("b"), []byte("d"))
		b.DeleteRange([]byte("x"), []byte("y"))
	})
	want(t, scan(t, s, store.Range{}), "a=va", "d=vd")
}

func scanSnapshot(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "a", "b")
	var got []string
	for p, err := range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(p.Key))
		put(t, s, "c")
	}
	want(t, got, "a", "b")
}

func concurrent(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	var wait sync.WaitGroup
	for i := range 32 {
		wait.Go(func() {
			for k := range 8 {
				var b store.Batch
				b.Put(fmt.Appendf(nil, "%02d/%d", i, k), nil)
				if err := s.Apply(context.Background(), &b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if n := len(scan(t, s, store.Range{})); n != 256 {
		t.Errorf("%d keys, want 256", n)
	}
}

func large(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	value := bytes.Repeat([]byte{0, 255, 7}, 1<<20)
	apply(t, s, func(b *store.Batch) { b.Put([]byte("k"), value) })
	if v, err := s.Get(t.Context(), []byte("k")); err != nil || !bytes.Equal(v, value) {
		t.Errorf("%d bytes, %v", len(v), err)
	}
}

func closed(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Apply(ctx, &store.Batch{}); !errors.Is(err, context.Canceled) {
		t.Errorf("apply with an ended context: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), []byte("a")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if err := s.Apply(t.Context(), &store.Batch{}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("apply: %v", err)
	}
	for _, err := range s.Scan(t.Context(), store.Range{}) {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("scan: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func reopen(t *testing.T, e Engine) {
	dir := t.TempDir()
	s := e.Open(t, dir)
	put(t, s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := scan(t, e.Open(t, dir), store.Range{})
	if e.Forgets {
		want(t, got)
		return
	}
	want(t, got, "a=va")
}

func ownership(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	key, value := []byte("k"), []byte("v")
	apply(t, s, func(b *store.Batch) { b.Put(key, value) })
	key[0], value[0] = 'x', 'x'
	v, err := s.Get(t.Context(), []byte("k"))
	if err != nil || string(v) != "v" {
		t.Fatalf("%q, %v", v, err)
	}
	v[0] = 'y'
	if v, _ := s.Get(t.Context(), []byte("k")); string(v) != "v" {
		t.Errorf("the store's value became %q", v)
	}
}

// wholeBatches moves a mark between two keys while readers look: they must
// always find it once.
func wholeBatches(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	keys := [2][]byte{[]byte("a"), []byte("b")}
	apply(t, s, func(b *store.Batch) { b.Put(keys[0], nil) })
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				n := 0
				for _, err := range s.Scan(context.Background(), store.Range{}) {
					if err != nil {
						t.Error(err)
					}
					n++
				}
				if n != 1 {
					t.Errorf("a scan found %d marks", n)
				}
			}
		})
	}
	for i := range 100 {
		apply(t, s, func(b *store.Batch) {
			b.Delete(keys[i%2])
			b.Put(keys[1-i%2], nil)
		})
	}
	close(done)
	readers.Wait()
}

func scanEnds(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	var last error
	for p, err := range s.Scan(ctx, store.Range{}) {
		if last = err; err == nil {
			got = append(got, string(p.Key))
		}
		cancel()
	}
	if len(got) != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("%v, then %v", got, last)
	}
	if _, err := s.Get(ctx, []byte("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
}

// likeAMap compares an engine with a map and a sort, over random batches.
func likeAMap(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	random := rand.New(rand.NewPCG(1, 2))
	key := func() []byte { return fmt.Appendf(nil, "%03d", random.IntN(200)) }
	model := map[string]string{}
	for round := range 60 {
		var b store.Batch
		for range 1 + random.IntN(20) {
			k, v := key(), fmt.Appendf(nil, "%d", random.Int())
			switch random.IntN(8) {
			case 0:
				b.Delete(k)
				delete(model, string(k))
			case 1:
				to := key()
				b.DeleteRange(k, to)
				maps.DeleteFunc(model, func(key, _ string) bool { return string(k) <= key && key < string(to) })
			default:
				b.Put(k, v)
				model[string(k)] = string(v)
			}
		}
		if err := s.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		r := store.Range{From: key(), To: key(), Reverse: round%2 == 1}
		var expected []string
		for _, k := range slices.Sorted(maps.Keys(model)) {
			if string(r.From) <= k && k < string(r.To) {
				expected = append(expected, k+"="+model[k])
			}
		}
		if r.Reverse {
			slices.Reverse(expected)
		}
		if got := scan(t, s, r); !slices.Equal(got, expected) {
			t.Fatalf("round %d, %q to %q: got %v, want %v", round, r.From, r.To, got, expected)
		}
	}
}

func anyBytes(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	put(t, s, "\x00", "\x00\x00", "\xff", "\xff\xff", "a\x00b")
	want(t, scan(t, s, store.Prefix([]byte("\xff"))), "\xff=v\xff", "\xff\xff=v\xff\xff")
	want(t, scan(t, s, store.Prefix([]byte("\x00"))), "\x00=v\x00", "\x00\x00=v\x00\x00")
	apply(t, s, func(b *store.Batch) { b.Put([]byte("empty"), nil) })
	if v, err := s.Get(t.Context(), []byte("empty")); err != nil || len(v) != 0 {
		t.Errorf("empty value: %q, %v", v, err)
	}
}
