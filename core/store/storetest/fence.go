package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/droverhq/drover/core/store"
)

// guards: a batch is made as a whole when all of its guards hold, and not at
// all when one does not.
func guards(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	apply(t, s, func(b *store.Batch) {
		b.Put([]byte("a"), []byte("1"))
		b.Put([]byte("empty"), nil)
	})
	a := store.Guard{Key: []byte("a"), Value: []byte("1")}
	for name, tc := range map[string]struct {
		guards []store.Guard
		ok     bool
	}{
		"the value":               {[]store.Guard{a}, true},
		"another value":           {[]store.Guard{{Key: []byte("a"), Value: []byte("2")}}, false},
		"a beginning":             {[]store.Guard{{Key: []byte("a"), Value: []byte{}}}, false},
		"no key, as wanted":       {[]store.Guard{{Key: []byte("none")}}, true},
		"a key, none wanted":      {[]store.Guard{{Key: []byte("a")}}, false},
		"no key, one wanted":      {[]store.Guard{{Key: []byte("none"), Value: []byte{}}}, false},
		"the empty value":         {[]store.Guard{{Key: []byte("empty"), Value: []byte{}}}, true},
		"the second of two fails": {[]store.Guard{a, {Key: []byte("a")}}, false},
	} {
		marks := [2][]byte{[]byte("mark/" + name), []byte("mark2/" + name)}
		b := store.Batch{Guards: tc.guards}
		b.Put(marks[0], nil)
		b.Put(marks[1], nil)
		b.DeleteRange([]byte("x"), []byte("y"))
		err := s.Apply(t.Context(), &b)
		if tc.ok && err != nil || !tc.ok && !errors.Is(err, store.ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
		for _, key := range marks {
			if _, err := s.Get(t.Context(), key); tc.ok != (err == nil) {
				t.Errorf("%s: afterwards %s: %v", name, key, err)
			}
		}
	}
	if err := s.Apply(t.Context(), &store.Batch{Guards: []store.Guard{{Key: []byte("a")}}}); !errors.Is(err, store.ErrFenced) {
		t.Errorf("a batch without changes: %v", err)
	}
}

// fenced: P3, whoever has an older term changes nothing, in no way.
func fenced(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	first, err := store.RaiseTerm(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	older := store.Fence(s, first)
	put(t, older, "a", "b")
	second, err := store.RaiseTerm(t.Context(), s)
	if err != nil || second <= first {
		t.Fatalf("%d after %d, %v", second, first, err)
	}
	for name, change := range map[string]func(*store.Batch){
		"put":          func(b *store.Batch) { b.Put([]byte("a"), []byte("2")) },
		"delete":       func(b *store.Batch) { b.Delete([]byte("a")) },
		"delete range": func(b *store.Batch) { b.DeleteRange([]byte("a"), []byte("c")) },
		"the term":     func(b *store.Batch) { b.Put(store.TermKey(), store.EncodeTerm(first)) },
		"nothing":      func(*store.Batch) {},
	} {
		var b store.Batch
		change(&b)
		if err := older.Apply(t.Context(), &b); !errors.Is(err, store.ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if term, err := store.Term(t.Context(), s); err != nil || term != second {
		t.Errorf("the term is %d, %v", term, err)
	}
	newer := store.Fence(s, second)
	put(t, newer, "c")
	want(t, scan(t, older, store.Range{To: []byte("d")}), "a=va", "b=vb", "c=vc")
}

// terms: writers that begin at the same time get terms of their own.
func terms(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		got  []uint64
	)
	for range 8 {
		wait.Go(func() {
			for range 4 {
				term, err := store.RaiseTerm(context.Background(), s)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, term)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	slices.Sort(got)
	for i, term := range got {
		if term != uint64(i)+1 {
			t.Fatalf("terms %v, want each of 1 to 32 once", got)
		}
	}
}

// scanMany changes everything while a scan of more than any page goes on.
func scanMany(t *testing.T, e Engine) {
	s := e.Open(t, t.TempDir())
	const n = 3000
	key := func(i int) []byte { return fmt.Appendf(nil, "k%05d", i) }
	apply(t, s, func(b *store.Batch) {
		for i := range n {
			b.Put(key(2*i), []byte("old"))
		}
	})
	for _, reverse := range []bool{false, true} {
		var got []string
		for p, err := range s.Scan(t.Context(), store.Range{Reverse: reverse}) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, string(p.Key)+"="+string(p.Value)); len(got)%700 == 1 {
				spoil(t, s, n, key, len(got))
			}
		}
		var expected []string
		for i := range n {
			expected = append(expected, string(key(2*i))+"=old")
		}
		if reverse {
			slices.Reverse(expected)
		}
		if !slices.Equal(got, expected) {
			t.Errorf("reverse %v: %d pairs that differ from the %d that were there", reverse, len(got), n)
		}
		apply(t, s, func(b *store.Batch) { // as at the beginning
			b.DeleteRange([]byte("k"), []byte("l"))
			for i := range n {
				b.Put(key(2*i), []byte("old"))
			}
		})
	}
}

// spoil changes, removes and adds keys everywhere.
func spoil(t *testing.T, s store.Store, n int, key func(int) []byte, round int) {
	t.Helper()
	apply(t, s, func(b *store.Batch) {
		b.DeleteRange(key(n/2), key(n/2+100))
		for i := round % 7; i < n; i += 7 {
			b.Put(key(2*i), fmt.Appendf(nil, "new %d", round))
			b.Put(key(2*i+1), []byte("added"))
			b.Delete(key(2*i + 2))
		}
	})
}
