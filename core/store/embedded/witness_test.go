package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

// fill applies n batches of one record. The lengths differ so that chunks begin and
// end everywhere in a block.
func fill(t *testing.T, s *Store, prefix string, n int) {
	t.Helper()
	for i := range n {
		var b store.Batch
		b.Put(fmt.Appendf(nil, "%s%05d", prefix, i), bytes.Repeat([]byte{byte(i)}, 100+i*37%900))
		if err := s.Apply(context.Background(), &b); err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, s *Store) int {
	t.Helper()
	n := 0
	for _, err := range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// killed copies the folder of a store as a kill -9 of its process leaves it.
func killed(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// newestLog returns the newest log of a store, its bytes and the mark of its witness.
func newestLog(t *testing.T, dir string) (path string, text []byte, m mark) {
	t.Helper()
	logs, err := logsOf(dir, vfs.Default)
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	path = logPath(dir, vfs.Default, logs[len(logs)-1])
	if text, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	m, _, err = readMark(filepath.Join(dir, witnessFile), vfs.Default)
	if err != nil {
		t.Fatal(err)
	}
	return path, text, m
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestP1_FlippedByteInTheLog_IsRefused: wherever in the last 64 KiB of acknowledged
// records a byte is changed, the store says so and does not begin without what
// stands behind it. Without the witness, what was written later tells of all but
// the last records.
func TestP1_FlippedByteInTheLog_IsRefused(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"killed", "closed"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "store")
			s, err := Open(dir, quiet())
			if err != nil {
				t.Fatal(err)
			}
			// The first log of a new store is of an older format, without promises.
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(dir, quiet()); err != nil {
				t.Fatal(err)
			}
			const records = 400
			fill(t, s, "k", records)
			if end == "killed" {
				defer s.Close()
				dir = killed(t, dir)
			} else if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path, log, m := newestLog(t, dir)
			number, _ := logNumber(filepath.Base(path))
			if m.log != number || m.offset < 64<<10 {
				t.Fatalf("the mark is %+v, the log %s", m, path)
			}
			last := m.offset // of what holds records
			if end == "closed" {
				last -= numberHeader
			}
			step := uint64(13)
			if testing.Short() {
				step = 251
			}
			for at := last - 64<<10; at < last; at += step {
				log[at] ^= 0x10
				good, closed := soundPrefix(log, uint32(number))
				if uint64(good) > at || closed || uint64(good)+promiseHeader > m.offset {
					t.Fatalf("a change of byte %d: it reads up to %d of %d (closed %v)", at, good, m.offset, closed)
				}
				if at+16<<10 < last && promised(log, uint32(number), good) <= at {
					t.Fatalf("a change of byte %d: what stands behind it tells nothing", at)
				}
				log[at] ^= 0x10
			}
			for _, back := range []uint64{1, 20, 500, 4 << 10, 20 << 10, 33 << 10, 64 << 10} {
				log[last-back] ^= 0x01
				write(t, path, log)
				_, err := Open(dir, quiet())
				var e *errs.Error
				if !errors.As(err, &e) || e.Reason != ReasonDamaged || !strings.Contains(err.Error(), path) || !strings.Contains(e.Hint, "drover store salvage") {
					t.Errorf("%d bytes before the end: %v", back, err)
				}
				log[last-back] ^= 0x01
			}
			write(t, path, log)
			if s, err = Open(dir, quiet()); err != nil {
				t.Fatal("undamaged:", err)
			}
			defer s.Close()
			if n := count(t, s); n != records {
				t.Errorf("%d records of %d", n, records)
			}
		})
	}
}

// TestP1_TornTail_StillStarts: a write that nobody was told of may end anywhere, or be
// garbage. What was acknowledged before it is there.
func TestP1_TornTail_StillStarts(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const records = 120
	fill(t, s, "k", records)
	acknowledged := killed(t, dir)
	fill(t, s, "late", 3)
	path, log, m := newestLog(t, dir)
	_, _, before := newestLog(t, acknowledged)
	path = filepath.Join(acknowledged, filepath.Base(path))
	random := rand.New(rand.NewPCG(1, 2))
	for at := before.offset; at < m.offset; at += 61 {
		for name, tail := range map[string][]byte{
			"cut":     log[:at],
			"zeros":   append(bytes.Clone(log[:at]), make([]byte, 300)...),
			"garbage": append(bytes.Clone(log[:at]), garbage(random, 300)...),
		} {
			write(t, path, tail)
			d, err := examine(acknowledged, vfs.Default, before)
			if d != nil || err != nil {
				t.Fatalf("%s at byte %d, %d behind what was acknowledged: %v, %v", name, at, at-before.offset, d, err)
			}
		}
	}
	write(t, path, append(bytes.Clone(log[:before.offset+40]), garbage(random, 1000)...))
	torn, err := Open(acknowledged, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer torn.Close()
	if n := count(t, torn); n != records {
		t.Errorf("%d records of %d", n, records)
	}
}

func garbage(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestP1_LogIsGone_IsRefused: the newest log is missing, or ends too early.
func TestP1_LogIsGone_IsRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"shorter": func(path string) error { return os.Truncate(path, 2000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "store")
			s, err := Open(dir, quiet())
			if err != nil {
				t.Fatal(err)
			}
			fill(t, s, "k", 30)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path, _, _ := newestLog(t, dir)
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, quiet()); errs.ReasonOf(err) != ReasonDamaged || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			}
			if _, err := Salvage(dir, quiet()); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(dir, quiet()); err != nil {
				t.Fatal(err)
			}
			fill(t, s, "new", 3)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSalvage_LeavesOutWhatIsBehindTheDamage and keeps it under another name; a store
// that is not damaged is left alone.
func TestSalvage_LeavesOutWhatIsBehindTheDamage(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	const records = 200
	fill(t, s, "k", records)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Salvage(dir, quiet()); errs.ReasonOf(err) != "STORE_SOUND" {
		t.Errorf("nothing is damaged: %v", err)
	}
	path, log, m := newestLog(t, dir)
	log[m.offset-4<<10] ^= 1
	write(t, path, log)
	done, err := Salvage(dir, quiet())
	if err != nil || done.Lost < 4<<10 || done.Lost > 6<<10 {
		t.Fatalf("%+v, %v", done, err)
	}
	if kept, err := os.ReadFile(done.Kept); err != nil || !bytes.Equal(kept, log) {
		t.Errorf("%s is not the damaged log: %v", done.Kept, err)
	}
	for range 2 {
		if s, err = Open(dir, quiet()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, s); n < records-20 || n >= records {
			t.Errorf("%d records of %d", n, records)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A witness that is damaged or missing, as after an update, keeps no store from
// starting: it is written anew.
func TestAWitnessThatIsDamagedHoldsUpNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	file := filepath.Join(dir, witnessFile)
	spoils := map[string]func() error{
		"missing": func() error { return os.Remove(file) },
		"empty":   func() error { return os.Truncate(file, 0) },
		"half":    func() error { return os.Truncate(file, 20) },
		"garbage": func() error { return os.WriteFile(file, garbage(rand.New(rand.NewPCG(3, 4)), 5000), 0o600) },
	}
	for _, name := range []string{"new", "missing", "empty", "half", "garbage"} {
		if spoil := spoils[name]; spoil != nil {
			if err := spoil(); err != nil {
				t.Fatal(name, err)
			}
		}
		s, err := Open(dir, quiet())
		if err != nil {
			t.Fatal(name, err)
		}
		fill(t, s, name, 3)
		if err := s.Close(); err != nil {
			t.Fatal(name, err)
		}
		if m, found, err := readMark(file, vfs.Default); err != nil || !found || m.offset == 0 {
			t.Errorf("%s: %+v, %v, %v", name, m, found, err)
		}
	}
}

// TestPowerCuts_NeverAlarm: P1. After a power cut at any moment the witness claims
// nothing that is not there, also when the disk kept only some of its pages, and
// when the logs were changed in between.
func TestPowerCuts_NeverAlarm(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	s, err := open("data", quiet(), fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	large := bytes.Repeat([]byte("x"), 700<<10)
	for round := range 24 {
		fill(t, s, fmt.Sprintf("%02d/", round), 5)
		var b store.Batch
		b.Put(fmt.Appendf(nil, "%02d/large", round), large) // the log changes every few rounds
		if err := s.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if round%5 == 0 {
			time.Sleep(2 * witnessSync)
		}
		cut := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(round), 7))})
		if n := survivors(t, cut, quiet()); n != 6*(round+1) {
			t.Fatalf("round %d: %d records of %d", round, n, 6*(round+1))
		}
	}
}

// BenchmarkWitness is what a sync of the log costs in addition.
func BenchmarkWitness(b *testing.B) {
	w, err := openWitness(b.TempDir(), vfs.Default, quiet())
	if err != nil {
		b.Fatal(err)
	}
	defer w.close()
	for i := range b.N {
		w.synced(1, uint64(i)+1)
	}
}
