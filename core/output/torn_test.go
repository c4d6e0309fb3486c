package output_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// estate is what a worker left: its folder, and what was in it.
type estate struct {
	dir   string
	jobs  []job.Key // sealed
	want  map[job.Key][2]string
	files map[string][]byte
	boots int
}

// leave makes a store of three interleaved, sealed attempts: two in one shared
// segment, the third goes on in chunks of its own.
func leave(t *testing.T) *estate {
	t.Helper()
	w := open(t, output.Config{}.Small())
	e := &estate{dir: w.dir, want: map[job.Key][2]string{}, files: map[string][]byte{}}
	type running struct {
		key  job.Key
		ends [2]*os.File
		want [2]string
	}
	var all []*running
	for range 3 {
		key, l := w.take(output.Options{})
		r := &running{key: key}
		for i, p := range []string{l.Stdout, l.Stderr} {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			r.ends[i] = f
		}
		all = append(all, r)
	}
	for round := range 6 {
		for n, r := range all {
			for i, f := range r.ends {
				text := strings.Repeat(string(rune('A'+6*n+3*i+round%3)), 90+10*round)
				if n == 2 && i == 0 {
					text = strings.Repeat(text, 40)
				}
				if _, err := f.WriteString(text); err != nil {
					t.Fatal(err)
				}
				r.want[i] += text
				w.await(r.key, output.StreamID(i+1), r.want[i]) // one move each
			}
		}
	}
	for _, r := range all {
		r.ends[0].Close()
		r.ends[1].Close()
		w.finish(r.key)
		e.jobs, e.want[r.key] = append(e.jobs, r.key), r.want
	}
	w.stop()
	names, err := filepath.Glob(filepath.Join(e.dir, "segments", "*"))
	if err != nil || len(names) < 4 {
		t.Fatalf("files %v, %v", names, err)
	}
	for _, name := range names {
		if e.files[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// await reads until all of want is there.
func (w *world) await(key job.Key, id output.StreamID, want string) {
	w.t.Helper()
	r, err := w.Read(key, id, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	for at := 0; at < len(want); {
		c, err := r.Next(w.t.Context(), true)
		if err != nil || c.Data == nil {
			w.t.Fatalf("%+v, %v", c, err)
		}
		at += len(c.Data)
	}
}

// restore writes the files as they were, one of them otherwise.
func (e *estate) restore(t *testing.T, name string, data []byte) {
	t.Helper()
	now, err := filepath.Glob(filepath.Join(e.dir, "segments", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range now {
		if _, was := e.files[n]; !was {
			if err := os.Remove(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n, b := range e.files {
		if n == name {
			b = data
		}
		if err := os.WriteFile(n, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// honest opens the store and compares what it says with the truth: bytes that
// were written or declared gaps, the size and sum of what is sealed. It returns
// how many bytes are missing.
func (e *estate) honest(t *testing.T, what string) (missing uint64) {
	t.Helper()
	e.boots++ // files are torn by a crash of the host
	s, err := output.Open(output.Config{Dir: e.dir, Boot: strconv.Itoa(e.boots)}.Small())
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer s.Abandon()
	for _, key := range e.jobs {
		for i, want := range e.want[key] {
			lost, err := compare(s, key, output.StreamID(i+1), want)
			if err != nil {
				t.Fatalf("%s: stream %d of attempt %d: %v", what, i+1, slices.Index(e.jobs, key), err)
			}
			missing += lost
		}
	}
	return missing
}

var (
	errInvented = errors.New("bytes that were never written")
	errSilent   = errors.New("bytes are missing in silence")
	errSum      = errors.New("END is not that of the stream")
)

// compare reads a stream that held want and returns how much of it is gone.
func compare(s *output.Store, key job.Key, id output.StreamID, want string) (missing uint64, err error) {
	r, err := s.Read(key, id, 0)
	if errs.ReasonOf(err) == "OUTPUT_GONE" {
		return uint64(len(want)), nil // a clear error
	}
	if err != nil {
		return 0, err
	}
	defer r.Close()
	at := uint64(0)
	for {
		c, err := r.Next(context.Background(), false)
		switch {
		case err != nil && at == 0 && missing == 0 && len(want) == 0:
			return 0, nil
		case err != nil:
			// An attempt whose END is lost has none, and may end early.
			return missing + uint64(len(want)) - min(at, uint64(len(want))), nil
		case c.Offset != at:
			return 0, errOffset
		case c.End != nil:
			if *c.End != sumOf([]byte(want)) {
				return 0, errSum
			}
			if at != uint64(len(want)) {
				return 0, errSilent
			}
			return missing, nil
		case c.Gap != nil:
			missing += c.Gap.To - at
			at = c.Gap.To
			continue
		}
		if at > uint64(len(want)) || !bytes.HasPrefix([]byte(want[at:]), c.Data) {
			return 0, errInvented
		}
		at += uint64(len(c.Data))
	}
}

// TestP8TornFilesLoseOnlyWhatTheyHeld cuts every file at every kind of place:
// at, before and after each border of an entry or a move.
func TestP8TornFilesLoseOnlyWhatTheyHeld(t *testing.T) {
	t.Parallel()
	e := leave(t)
	if n := e.honest(t, "whole"); n != 0 {
		t.Fatalf("%d bytes are missing from whole files", n)
	}
	for name, data := range e.files {
		step := 37
		if strings.HasSuffix(name, ".seg") {
			step = max(61, len(data)/150)
		}
		for cut := 0; cut < len(data); cut += step {
			e.restore(t, name, data[:cut])
			missing := e.honest(t, filepath.Base(name)+" cut")
			if lost := uint64(len(data) - cut); strings.HasSuffix(name, ".seg") && missing > lost {
				t.Fatalf("%s cut at %d of %d: %d bytes are missing", name, cut, len(data), missing)
			}
		}
	}
}

// TestP8EveryFlippedBitOfAnIndexIsFound: a wrong offset would show bytes of
// somebody else.
func TestP8EveryFlippedBitOfAnIndexIsFound(t *testing.T) {
	t.Parallel()
	e := leave(t)
	for name, data := range e.files {
		if !strings.HasSuffix(name, ".idx") {
			continue
		}
		for bit := 0; bit < len(data)*8; bit += 101 {
			bad := bytes.Clone(data)
			bad[bit/8] ^= 1 << (bit % 8)
			e.restore(t, name, bad)
			e.honest(t, filepath.Base(name)+" flipped")
		}
	}
}

// TestP8TailsOfZerosAreNotOutput: a file system may have given a file its
// length before its bytes when the host crashed.
func TestP8TailsOfZerosAreNotOutput(t *testing.T) {
	t.Parallel()
	e := leave(t)
	for name, data := range e.files {
		if !strings.HasSuffix(name, ".idx") {
			continue
		}
		for cut := 0; cut < len(data); cut += 53 {
			bad := bytes.Clone(data)
			clear(bad[cut:])
			e.restore(t, name, bad)
			e.honest(t, filepath.Base(name)+" zeroed")
		}
	}
}
