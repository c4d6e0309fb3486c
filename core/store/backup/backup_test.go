package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/memory"
)

func filled(t rapid.TB, pairs map[string]string) store.Store {
	st := memory.New()
	var b store.Batch
	for k, v := range pairs {
		b.Put([]byte(k), []byte(v))
	}
	if err := st.Apply(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return st
}

func content(t rapid.TB, st store.Store) map[string]string {
	out := map[string]string{}
	for p, err := range st.Scan(context.Background(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		out[string(p.Key)] = string(p.Value)
	}
	return out
}

func copied(t rapid.TB, st store.Store) []byte {
	var b bytes.Buffer
	if _, err := backup.Write(context.Background(), st, &b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsWrittenIsLoaded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pairs := rapid.MapOf(rapid.StringN(1, 20, -1), rapid.String()).Draw(t, "pairs")
		file := copied(t, filled(t, pairs))
		to := memory.New()
		n, err := backup.Load(context.Background(), bytes.NewReader(file), to)
		if err != nil || n != uint64(len(pairs)) || !maps.Equal(content(t, to), pairs) {
			t.Fatalf("%d pairs, %v: %v, want %v", n, err, content(t, to), pairs)
		}
	})
}

func TestLargeValuesTakeSeveralBatches(t *testing.T) {
	t.Parallel()
	pairs := map[string]string{"a": string(make([]byte, 3<<20)), "b": "", "c": string(bytes.Repeat([]byte("x"), 1<<20))}
	to := memory.New()
	if _, err := backup.Load(t.Context(), bytes.NewReader(copied(t, filled(t, pairs))), to); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(content(t, to), pairs) {
		t.Error("the pairs differ")
	}
}

// TestADamagedBackupChangesNothing: every cut and every changed byte is seen
// before a pair is put.
func TestADamagedBackupChangesNothing(t *testing.T) {
	t.Parallel()
	file := copied(t, filled(t, map[string]string{"key": "value", "other": "one"}))
	check := func(what string, at int, bad []byte) {
		t.Helper()
		to := memory.New()
		if _, err := backup.Load(t.Context(), bytes.NewReader(bad), to); errs.ReasonOf(err) != "BACKUP_DAMAGED" {
			t.Errorf("%s at %d: %v", what, at, err)
		}
		if got := content(t, to); len(got) > 0 {
			t.Errorf("%s at %d: loaded %v", what, at, got)
		}
	}
	for i := range file {
		check("cut", i, file[:i])
		changed := bytes.Clone(file)
		changed[i] ^= 0x55
		check("changed", i, changed)
	}
	check("longer", len(file), append(bytes.Clone(file), 0))
}

func TestAStoreInUseIsLeftAlone(t *testing.T) {
	t.Parallel()
	to := filled(t, map[string]string{"mine": "1"})
	file := copied(t, filled(t, map[string]string{"theirs": "2"}))
	if _, err := backup.Load(t.Context(), bytes.NewReader(file), to); errs.ReasonOf(err) != "STORE_NOT_EMPTY" {
		t.Errorf("got %v", err)
	}
	if got := content(t, to); len(got) != 1 {
		t.Errorf("it holds %v", got)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(copied(f, filled(f, map[string]string{"key": "value"})))
	f.Add([]byte("drover backup 1\n\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, err := backup.Verify(bytes.NewReader(file)); err != nil && errs.ReasonOf(err) != "BACKUP_DAMAGED" {
			t.Errorf("got %v", err)
		}
	})
}

func TestACopyIsTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pairs := rapid.MapOf(rapid.OneOf(rapid.StringN(1, 20, -1), rapid.Just(string(store.TermKey()))), rapid.String()).Draw(t, "pairs")
		to := memory.New()
		n, err := backup.Copy(context.Background(), filled(t, pairs), to)
		if err != nil || n != uint64(len(pairs)) || !maps.Equal(content(t, to), pairs) {
			t.Fatalf("%d pairs, %v: %v, want %v", n, err, content(t, to), pairs)
		}
		if _, err := backup.Copy(context.Background(), to, to); len(pairs) > 0 && errs.ReasonOf(err) != "STORE_NOT_EMPTY" {
			t.Fatalf("over what is there: %v", err)
		}
	})
}

// breaking fails at a batch.
type breaking struct {
	store.Store
	left int
}

func (b *breaking) Apply(ctx context.Context, batch *store.Batch) error {
	if b.left--; b.left < 0 {
		return errors.New("it broke")
	}
	return b.Store.Apply(ctx, batch)
}

// P3: a scheduler on the half of a copy begins with term 1, so workers refuse it.
func TestAHalfCopyHasNoTerm(t *testing.T) {
	t.Parallel()
	pairs := map[string]string{string(store.TermKey()): string(store.EncodeTerm(7))}
	for i := range 25_000 {
		pairs[fmt.Sprintf("x%d", i)] = ""
	}
	for left := range 4 {
		to := memory.New()
		if _, err := backup.Copy(t.Context(), filled(t, pairs), &breaking{to, left}); (err == nil) != (left > 3) {
			t.Fatalf("%d batches: %v", left, err)
		}
		if term, err := store.Term(t.Context(), to); err != nil || term != 0 {
			t.Errorf("after %d batches the term is %d, %v", left, term, err)
		}
	}
}
