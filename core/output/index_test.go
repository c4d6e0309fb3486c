package output

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
)

// entries of two attempts, in the order in which a store would write them.
func entries() []entry {
	a := job.Key{Job: uuid.UUID{0: 1, 15: 1}, Attempt: 1}
	b := job.Key{Job: uuid.UUID{0: 1, 15: 2}, Attempt: 3}
	at := time.Unix(1_700_000_000, 5)
	return []entry{
		{time: at, key: a, stream: Stdout, kind: kindMove},
		{time: at, key: b, stream: Stderr, kind: kindMove, segOff: 100},
		{time: at, key: a, stream: Stdout, kind: kindMove, off: 100, segOff: 130},
		{time: at, key: a, stream: Stdout, kind: kindEnd, off: 170, segOff: uint64(job.Keep), sum: [32]byte{1, 31: 2}},
		{time: at, key: a, stream: Stderr, kind: kindEnd},
		{time: at, kind: kindRemoved, key: b},
		{time: at, kind: kindSize, segOff: 170},
		{time: at, kind: kindGiven, key: a, segOff: uint64(byAge)},
		{time: at, kind: kindSpent},
	}
}

func TestEntriesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	for _, want := range entries() {
		raw := want.encode(nil)
		if len(raw) != entrySize {
			t.Fatalf("%d bytes", len(raw))
		}
		got, ok := decodeEntry(raw)
		if !ok || !got.time.Equal(want.time) {
			t.Errorf("%+v, %v, want %+v", got, ok, want)
		}
		if got.time = want.time; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

func TestEveryFlippedBitOfAnEntryIsFound(t *testing.T) {
	t.Parallel()
	for _, e := range entries() {
		raw := e.encode(nil)
		for bit := range len(raw) * 8 {
			bad := bytes.Clone(raw)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, ok := decodeEntry(bad); ok {
				t.Errorf("kind %d: bit %d may be flipped", e.kind, bit)
			}
		}
	}
}

// TestP11EntriesOfAWorkerWithoutChecksAreRead: two bytes were zero then.
func TestP11EntriesOfAWorkerWithoutChecksAreRead(t *testing.T) {
	t.Parallel()
	for _, e := range entries() {
		raw := e.encode(nil)
		raw[30], raw[31] = 0, 0
		if _, ok := decodeEntry(raw); !ok {
			t.Errorf("kind %d is refused", e.kind)
		}
	}
}

// FuzzRecover: whatever an index says, the store opens; what it shows is in
// order, within its segment, and twice the same.
func FuzzRecover(f *testing.F) {
	var whole, old []byte
	for _, e := range entries() {
		raw := e.encode(nil)
		whole = append(whole, raw...)
		raw[30], raw[31] = 0, 0 // lets the fuzzer through the check
		old = append(old, raw...)
	}
	f.Add(whole, uint16(170))
	f.Add(whole, uint16(90))
	f.Add(whole[:len(whole)-30], uint16(170))
	f.Add(whole[:2*entrySize], uint16(60000))
	f.Add(old, uint16(170))
	f.Add(append(bytes.Clone(old[entrySize:3*entrySize]), old[:entrySize]...), uint16(400))
	f.Add(append(bytes.Clone(old[:2*entrySize]), make([]byte, 3*entrySize)...), uint16(300))
	f.Add([]byte{}, uint16(9))
	f.Fuzz(func(t *testing.T, index []byte, size uint16) {
		for _, known := range []bool{true, false} {
			dir := t.TempDir()
			if known {
				readAll(t, dir, "") // it notes the boot; without that, what was written last is in doubt
			}
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(i % 251)
			}
			writeSegment(t, dir, index, data)
			first := readAll(t, dir, "")
			if second := readAll(t, dir, ""); !maps.Equal(first, second) {
				t.Fatalf("two opens disagree (boot known: %v): %v, then %v", known, first, second)
			}
		}
	})
}

// TestWhatACrashOfTheHostTook_StaysLost: what one start declares lost is not shown by the
// next one, though its bytes may be there; what was written since is shown.
func TestWhatACrashOfTheHostTook_StaysLost(t *testing.T) {
	t.Parallel()
	lost := job.Key{Job: uuid.UUID{0: 1, 15: 1}, Attempt: 1}
	stream := streamKey{lost, Stdout}
	for name, note := range map[string]string{"another boot": "0 boot 1\n", "a note of an older version": "boot 1", "no note": ""} {
		dir := t.TempDir()
		move := entry{time: time.Unix(1_700_000_000, 5), kind: kindMove, key: lost, stream: Stdout}
		writeSegment(t, dir, move.encode(nil), []byte("perhaps zeros"))
		if note != "" {
			if err := os.WriteFile(filepath.Join(dir, "boot"), []byte(note), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for open := range 3 {
			if got := readAll(t, dir, "boot 2")[stream]; strings.Contains(got, "zeros") || !strings.Contains(got, "13") {
				t.Errorf("%s, open %d: %q is read, want a gap of 13 bytes", name, open, got)
			}
		}
		for _, suffix := range []string{".idx", ".seg"} {
			if err := os.Remove(segmentPath(dir) + suffix); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(Config{Dir: dir, Boot: "boot 2"}.Small())
		if err != nil {
			t.Fatal(err)
		}
		if s.number != 1 {
			t.Errorf("%s: the number of a removed segment of an earlier boot is given again: %d", name, s.number)
		}
		s.Abandon()
	}
}

func segmentPath(dir string) string { return filepath.Join(dir, "segments", "000000000001") }

// writeSegment makes the only segment of a store.
func writeSegment(t *testing.T, dir string, index, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "segments"), 0o700); err != nil {
		t.Fatal(err)
	}
	for suffix, b := range map[string][]byte{".idx": index, ".seg": data} {
		if err := os.WriteFile(segmentPath(dir)+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

type streamKey struct {
	key job.Key
	id  StreamID
}

// readAll opens a store in a boot of the host, "" for the real one, and reads every
// stream to its end.
func readAll(t *testing.T, dir, boot string) map[streamKey]string {
	t.Helper()
	s, err := Open(Config{Dir: dir, Boot: boot}.Small())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abandon()
	all := map[streamKey]string{}
	for _, key := range s.Keys() {
		for _, id := range []StreamID{Stdout, Stderr} {
			// Nothing is known of an attempt that was announced and moved nothing.
			if got := readStream(t, s, key, id); got != "" {
				all[streamKey{key, id}] = got
			}
		}
	}
	return all
}

func readStream(t *testing.T, s *Store, key job.Key, id StreamID) (got string) {
	t.Helper()
	r, err := s.Read(key, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(0)
	for steps := 0; ; steps++ {
		c, err := r.Next(context.Background(), false)
		if err != nil || c.End != nil {
			return got
		}
		if c.Offset != at || steps > 1<<16 {
			t.Fatalf("offset %d at %d, step %d", c.Offset, at, steps)
		}
		if c.Gap != nil {
			if c.Gap.To <= at {
				t.Fatalf("a gap from %d to %d", at, c.Gap.To)
			}
			at = c.Gap.To
			got += fmt.Sprintf("<%s to %d>", c.Gap.Reason, at)
			continue
		}
		at += uint64(len(c.Data))
		got += string(c.Data)
	}
}
