package output_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// The record of a removal lay in a segment that nobody held: with that one gone
// the removed attempt came back.
func TestRemovedOutputStaysRemovedOverManyRestarts(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	keeper, gone := w.run("echo keeper"), w.run("echo gone") // in one segment
	for life := range 4 {
		w.stop()
		w = open(t, output.Config{Dir: w.dir})
		if life == 0 {
			if err := w.Remove(gone); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Read(gone, output.Stdout, 0); errs.ReasonOf(err) != "OUTPUT_GONE" {
			t.Fatalf("life %d: removed output can be read, %v", life, err)
		}
		if got := w.read(keeper, output.Stdout); got != "keeper\n" {
			t.Fatalf("life %d: stdout %q", life, got)
		}
	}
	if err := w.Remove(keeper); err != nil {
		t.Fatal(err)
	}
	w.stop()
	open(t, output.Config{Dir: w.dir}).stop()
	if left, err := filepath.Glob(filepath.Join(w.dir, "segments", "*")); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// A worker that was killed while it made a segment could make none any more:
// the number was taken.
func TestASegmentWithoutIndexIsNoObstacle(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run("echo text")
	w.stop()
	orphan := filepath.Join(w.dir, "segments", "000000000002.seg")
	if err := os.WriteFile(orphan, []byte("nobody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	w = open(t, output.Config{Dir: w.dir})
	other := w.run("echo other")
	if got := w.read(other, output.Stdout) + w.read(key, output.Stdout); got != "other\ntext\n" {
		t.Errorf("stdout %q", got)
	}
}

// Pipes of a worker that died before its first word on an attempt lie there
// still, perhaps another user's, perhaps with a writer.
func TestALaneOfAnEarlierLifeIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	_, old := w.take(output.Options{})
	ghost, err := os.OpenFile(old.Stdout, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ghost.Close()
	w.stop()
	w = open(t, output.Config{Dir: w.dir})
	key, l := w.take(output.Options{})
	if l != old {
		t.Fatalf("lanes %v after %v", l, old)
	}
	if _, err := ghost.WriteString("boo"); err != nil {
		t.Fatal(err)
	}
	if err := w.start(l, "echo mine").Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(key)
	if got := w.read(key, output.Stdout); got != "mine\n" {
		t.Errorf("stdout %q", got)
	}
}

// TestP7ALaneIsResumedBeforeItsProcessBegins: a worker was killed after the intent
// and before the start. The next one saw that nobody held the pipes, took that
// for the end, and lost all that the process wrote.
func TestP7ALaneIsResumedBeforeItsProcessBegins(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key, l := w.take(output.Options{})
	w.stop()
	w = open(t, output.Config{Dir: w.dir})
	if err := w.Resume(key, l, output.Options{UID: -1, GID: -1, Unborn: true}); err != nil {
		t.Fatal(err)
	}
	other := w.run("echo other") // the mover has looked at all lanes since
	cmd := w.start(l, "echo mine; read x")
	w.Whole(key)
	w.NoWriter(key) // it holds them
	if err := cmd.Wait(); err == nil {
		t.Error("it read a line")
	}
	w.NoWriter(key)
	w.finish(key)
	if got := w.read(key, output.Stdout) + w.read(other, output.Stdout); got != "mine\nother\n" {
		t.Errorf("stdout %q", got)
	}
}

// TestP8ACutFileIsAnErrorAndNotTheEnd: an end of file of the segment would pass
// for that of the stream.
func TestP8ACutFileIsAnErrorAndNotTheEnd(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run("echo text")
	live, l := w.take(output.Options{})
	if err := w.start(l, "echo text").Wait(); err != nil {
		t.Fatal(err)
	}
	<-w.Drained(live)
	for _, name := range glob(t, w.dir, "*.seg") {
		if err := os.Truncate(name, 2); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context(), true); errs.ReasonOf(err) != "OUTPUT" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut file gave %v", err)
	}
	stdout, _ := w.finish(live)
	if stdout.Size != 5 || stdout.SHA256 != "" {
		t.Errorf("sealed as %v, want 5 bytes without a sum", stdout)
	}
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "segments", pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s, %v", pattern, err)
	}
	return names
}

func TestUnusableFoldersAreRefusedWithTheirName(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"a file in place of the folder": func(dir string) error { return os.WriteFile(filepath.Join(dir, "segments"), nil, 0o600) },
		"a stranger's index": func(dir string) error {
			if err := os.Mkdir(filepath.Join(dir, "segments"), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "segments", "stranger.idx"), nil, 0o600)
		},
		"a folder in place of an index": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "segments", "1.idx"), 0o700) },
		"a folder in place of a segment": func(dir string) error {
			if err := os.MkdirAll(filepath.Join(dir, "segments", "1.seg"), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "segments", "1.idx"), nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := output.Open(output.Config{Dir: dir}); errs.ReasonOf(err) != "OUTPUT" {
				t.Errorf("opened with %v", err)
			}
		})
	}
}

func TestAnUnknownAttemptHasNothing(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := newKey()
	<-w.Drained(key)
	w.NoWriter(key)
	if _, _, ok := w.Sizes(key); ok || !w.LastWrite(key).IsZero() {
		t.Error("it has sizes or a time")
	}
	if _, _, err := w.Finish(t.Context(), key, true); errs.KindOf(err) != errs.NotFound {
		t.Errorf("finished with %v", err)
	}
	if err := w.Remove(key); err != nil {
		t.Errorf("removed with %v", err)
	}
	if _, err := w.ReadBoth(key, [2]uint64{}); errs.ReasonOf(err) != "OUTPUT_GONE" {
		t.Errorf("read with %v", err)
	}
	if err := w.Resume(key, output.Lanes{Stdout: "nothing", Stderr: "nothing"}, output.Options{}); err == nil {
		t.Error("resumed on lanes that are none")
	}
	twice, _ := w.take(output.Options{})
	if _, err := w.Take(twice, output.Options{UID: -1, GID: -1}); errs.KindOf(err) != errs.Exists {
		t.Errorf("taken twice with %v", err)
	}
	if key := w.run("echo x"); w.LastWrite(key).IsZero() {
		t.Error("a time of no write")
	}
}

// TestP8WhatWasLeftInAnUnheldPipeIsDeclared: worker and plugin were killed together and
// the job had ended. What it wrote last was gone, and the end said that all was there.
func TestP8WhatWasLeftInAnUnheldPipeIsDeclared(t *testing.T) {
	t.Parallel()
	for name, held := range map[string]bool{"nobody holds it": false, "its plugin holds it": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := open(t, output.Config{})
			key, l := w.take(output.Options{})
			if held {
				for _, p := range []string{l.Stdout, l.Stderr} {
					f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
				}
			}
			w.stop() // what is written from now on stays in the pipe
			if err := w.start(l, "echo text").Wait(); err != nil {
				t.Fatal(err)
			}
			w = open(t, output.Config{Dir: w.dir})
			if err := w.Resume(key, l, output.Options{UID: -1, GID: -1}); err != nil {
				t.Fatal(err)
			}
			w.finish(key)
			for range 2 {
				r, err := w.Read(key, output.Stdout, 0)
				if err != nil {
					t.Fatal(err)
				}
				var text string
				var gap *output.Gap
				var end *job.Stream
				for end == nil {
					c, err := r.Next(t.Context(), true)
					if err != nil {
						t.Fatal(err)
					}
					text += string(c.Data)
					if c.Gap != nil {
						gap = c.Gap
					}
					end = c.End
				}
				r.Close()
				if cut := gap != nil && gap.Reason == output.Unread && end.SHA256 == ""; cut == held || held && text != "text\n" {
					t.Errorf("held %t: %q, gap %v, end %v", held, text, gap, end)
				}
				w.stop()
				w = open(t, output.Config{Dir: w.dir}) // the next life says the same
			}
		})
	}
}
