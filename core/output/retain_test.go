package output_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// gap requires that all of an ended stdout is gone for a reason, and that its size
// and sum are not.
func (w *world) gap(key job.Key, size uint64, reason string) {
	w.t.Helper()
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	declared(w.t, r, size, reason)
}

// declared requires a gap up to the size of an ended stream, and then its end.
func declared(t *testing.T, r *output.Reader, size uint64, reason string) {
	t.Helper()
	c, err := r.Next(t.Context(), true)
	if err != nil || c.Gap == nil || *c.Gap != (output.Gap{To: size, Reason: reason}) {
		t.Fatalf("gap %+v, %d bytes, %v, want %s to %d", c.Gap, len(c.Data), err, reason, size)
	}
	if c, err = r.Next(t.Context(), true); err != nil || c.End == nil || c.End.Size != size || len(c.End.SHA256) != 64 {
		t.Fatalf("end %+v, %v", c.End, err)
	}
}

// clock is what the kernel and the wall say; a test has one goroutine.
type clock struct {
	up   time.Duration
	wall time.Time
}

func (c *clock) config(dir string, r output.Retention) output.Config {
	return output.Config{
		Dir: dir, Boot: "boot 1", Retention: r,
		Uptime: func() time.Duration { return c.up }, Now: func() time.Time { return c.wall },
	}.Small()
}

const day = 24 * time.Hour

func TestRetentionByAgeAndOutcome(t *testing.T) {
	t.Parallel()
	now := &clock{up: time.Hour, wall: time.Unix(1_800_000_000, 0)}
	w := open(t, now.config(t.TempDir(), output.Retention{For: day, FailedFor: 3 * day}))
	good, bad, untold := w.run("echo good"), w.run("echo bad"), w.run("echo untold")
	running, l := w.take(output.Options{})
	if err := w.start(l, "echo running").Wait(); err != nil {
		t.Fatal(err)
	}
	w.Settled(good, true, false)
	w.Settled(bad, true, true)
	w.Settled(untold, false, false)
	w.Settled(running, true, false) // cannot be; the bytes of what has no end stay all the same
	kept := func(key job.Key, want string) {
		t.Helper()
		if got := w.read(key, output.Stdout); got != want {
			t.Errorf("%q is read, want %q", got, want)
		}
	}
	now.up += day - time.Millisecond
	w.Retain(t.Context())
	kept(good, "good\n")
	now.up += 2 * time.Millisecond
	w.Retain(t.Context())
	w.gap(good, 5, "RETENTION_AGE")
	kept(bad, "bad\n")
	now.up += 100 * day
	w.Retain(t.Context())
	w.gap(bad, 4, "RETENTION_AGE")
	kept(untold, "untold\n")
	w.finish(running)
	kept(running, "running\n")
}

// TestP14AgeIsNotTheWallClock: whatever the wall clock says, and whoever sets it,
// output ages with the time that passed: over restarts by the kernel's clock, over
// a boot not at all.
func TestP14AgeIsNotTheWallClock(t *testing.T) {
	t.Parallel()
	now := &clock{up: 1000 * day, wall: time.Unix(1_800_000_000, 0)}
	c := now.config(t.TempDir(), output.Retention{For: 10 * day})
	w := open(t, c)
	key := w.run("echo kept")
	again := func(what string) {
		t.Helper()
		w.Settled(key, true, false)
		w.Retain(t.Context())
		if got := w.read(key, output.Stdout); got != "kept\n" {
			t.Fatalf("%s: %q is read", what, got)
		}
		w.stop()
		w = open(t, c)
		w.Settled(key, true, false)
		w.Retain(t.Context())
		if got := w.read(key, output.Stdout); got != "kept\n" {
			t.Fatalf("%s, then restarted: %q is read", what, got)
		}
	}
	now.wall = now.wall.AddDate(40, 0, 0)
	again("the wall clock is set forward by years")
	now.wall = now.wall.AddDate(-80, 0, 0)
	again("and back by more")
	now.up += 4 * day
	again("four days")
	w.stop()
	now.up += 3 * day
	w = open(t, c)
	again("three days without a worker")
	w.stop()
	now.up, c.Boot = 20*day, "boot 2" // after the host was down for who knows how long
	w = open(t, c)
	again("a boot")
	w.stop()
	now.up += 3*day - 2*time.Millisecond
	w = open(t, c)
	again("almost ten days")
	now.up += 4 * time.Millisecond
	w.Retain(t.Context())
	w.gap(key, 5, "RETENTION_AGE")
}

// TestP14OutputIsKeptWhenTheAgeIsLost: the file of the clock is gone, or of before
// a loss of power, or of an earlier version.
func TestP14OutputIsKeptWhenTheAgeIsLost(t *testing.T) {
	t.Parallel()
	now := &clock{up: 50 * day, wall: time.Unix(1_800_000_000, 0)}
	c := now.config(t.TempDir(), output.Retention{For: day})
	w := open(t, c)
	now.up += 30 * day
	key := w.run("echo kept")
	for _, text := range []string{"", "nonsense", "age 3600000000000 uptime 1 boot other\n", "age 9223372036854775807 up", "age -5 uptime 7 boot x\n"} {
		w.stop()
		if err := os.WriteFile(filepath.Join(c.Dir, "age"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w = open(t, c)
		w.Settled(key, true, false)
		w.Retain(t.Context())
		if got := w.read(key, output.Stdout); got != "kept\n" {
			t.Fatalf("with %q: %q is read", text, got)
		}
	}
	now.up += day + time.Second
	w.Retain(t.Context())
	w.gap(key, 5, "RETENTION_AGE")
}

func TestRetentionByCount(t *testing.T) {
	t.Parallel()
	now := &clock{up: time.Hour, wall: time.Unix(1_800_000_000, 0)}
	w := open(t, now.config(t.TempDir(), output.Retention{Count: 2}))
	var keys []job.Key
	for range 4 {
		key := w.run("echo line")
		w.Settled(key, true, false)
		w.Settled(w.run("true"), true, false) // has none, so it takes no place
		keys = append(keys, key)
		now.up += time.Second
	}
	untold := w.run("echo line")
	w.Retain(t.Context())
	w.gap(keys[0], 5, "RETENTION_COUNT")
	w.gap(keys[1], 5, "RETENTION_COUNT")
	for _, key := range []job.Key{keys[2], keys[3], untold} {
		if got := w.read(key, output.Stdout); got != "line\n" {
			t.Errorf("%q is read", got)
		}
	}
}

// TestGivenOutputStaysGivenAndItsRoomIsThere: small outputs share a segment, and
// what is known of each lies there, too. The bytes go with the last output that
// needs them, a restart brings nothing back, and what is read meanwhile is whole.
func TestGivenOutputStaysGivenAndItsRoomIsThere(t *testing.T) {
	t.Parallel()
	now := &clock{up: time.Hour, wall: time.Unix(1_800_000_000, 0)}
	c := now.config(t.TempDir(), output.Retention{For: day})
	w := open(t, c)
	var old []job.Key
	for range 30 { // several segments of 48 KiB
		key := w.run("head -c 6000 /dev/zero; echo x >&2")
		w.Settled(key, true, false)
		old = append(old, key)
	}
	reader, err := w.Read(old[0], output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if c, err := reader.Next(t.Context(), false); err != nil || len(c.Data) == 0 {
		t.Fatal(err)
	}
	before := w.Total()
	now.up += day
	young := w.run("echo young")
	w.Settled(young, true, false)
	w.Retain(t.Context())
	until(t, "the bytes are gone from the disk", func() bool { return onDisk(t, c.Dir) <= 48<<10 })
	if got := w.Total(); got > 48<<10 || before < 150_000 {
		t.Errorf("%d bytes count, before %d", got, before)
	}
	for range 3 {
		for _, key := range old {
			w.gap(key, 6000, "RETENTION_AGE")
		}
		if got := w.read(young, output.Stdout); got != "young\n" {
			t.Errorf("%q is read", got)
		}
		w.stop()
		w = open(t, c)
	}
	for _, key := range append(old, young) {
		if err := w.Remove(key); err != nil {
			t.Fatal(err)
		}
	}
	w.stop()
	w = open(t, c)
	if keys := w.Keys(); len(keys) > 0 {
		t.Errorf("%d attempts are back", len(keys))
	}
}

// onDisk counts the bytes of segments, not those of their indexes.
func onDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	for _, name := range glob(t, dir, "*.seg") {
		info, err := os.Stat(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			n += info.Size()
		}
	}
	return n
}

// TestSmallOutputsCountAgainstTheQuota: each held its shared segment until the
// scheduler forgot the job, so the quota gave nothing back.
func TestSmallOutputsCountAgainstTheQuota(t *testing.T) {
	t.Parallel()
	c := output.Config{Dir: t.TempDir(), Quota: 120 << 10}.Small()
	w := open(t, c)
	var keys []job.Key
	for range 60 {
		key := w.run("head -c 6000 /dev/zero")
		w.Settled(key, true, false)
		keys = append(keys, key)
	}
	if got := w.Total(); got > 180<<10 { // the quota, and a segment that is being filled
		t.Errorf("%d bytes are kept", got)
	}
	w.gap(keys[0], 6000, "RETENTION_QUOTA")
	if got := w.read(keys[59], output.Stdout); len(got) != 6000 {
		t.Errorf("%d bytes of the newest", len(got))
	}
}

// TestP8AReadOverRetention: who reads when the bytes go has what was read, then a
// gap, then the end.
func TestP8AReadOverRetention(t *testing.T) {
	t.Parallel()
	now := &clock{up: time.Hour, wall: time.Unix(1_800_000_000, 0)}
	w := open(t, now.config(t.TempDir(), output.Retention{For: day}))
	key := w.run("head -c 100000 /dev/zero")
	w.Settled(key, true, false)
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Next(t.Context(), true)
	if err != nil || len(c.Data) == 0 {
		t.Fatal(err)
	}
	first := uint64(len(c.Data))
	now.up += day
	w.Retain(t.Context())
	if c, err = r.Next(t.Context(), true); err != nil || c.Gap == nil || c.Offset != first || c.Gap.To != 100000 {
		t.Fatalf("%d bytes, gap %+v, %v", len(c.Data), c.Gap, err)
	}
	if c, err = r.Next(t.Context(), true); err != nil || c.End == nil || c.End.Size != 100000 {
		t.Fatalf("end %+v, %v", c.End, err)
	}
	if _, err = r.Next(t.Context(), true); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// TestP16_RemovedOutput_ItsReadersAreEnded: with the reason, and not with an end.
func TestP16_RemovedOutput_ItsReadersAreEnded(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run("echo hello")
	r, err := w.Read(key, output.Stdout, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.Remove(key); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(t.Context(), true); errs.ReasonOf(err) != output.ReasonGone {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRetentionThatIsNegativeIsRefusedByName(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]output.Retention{
		"keep-output-for": {For: -1}, "keep-failed-output-for": {FailedFor: -1}, "keep-outputs": {Count: -1},
	} {
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&output.Retention{For: day, FailedFor: day, Count: 5}).Validate(); err != nil {
		t.Error(err)
	}
}
