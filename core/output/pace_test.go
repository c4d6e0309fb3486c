package output_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// slowly is a pace that ends with the test's patience only.
func slowly(most int) func(int) time.Duration {
	return func(followers int) time.Duration {
		if followers <= most {
			return 0
		}
		return time.Hour
	}
}

// crowd follows one attempt with so many readers.
type crowd struct {
	*world
	t       *testing.T
	key     job.Key
	stdout  *os.File
	readers []*output.Reader
}

func newCrowd(t *testing.T, c output.Config, n int) *crowd {
	t.Helper()
	began := time.Now()
	c.Now = func() time.Time { return began } // or what is moved much later is a piece of its own
	w := open(t, c)
	key, l := w.take(output.Options{})
	f, err := os.OpenFile(l.Stdout, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := &crowd{world: w, t: t, key: key, stdout: f}
	for range n {
		r, err := w.ReadBoth(key, [2]uint64{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		out.readers = append(out.readers, r)
	}
	return out
}

// write returns when the mover has what was written.
func (c *crowd) write(text string) {
	c.t.Helper()
	before, _, _ := c.Sizes(c.key)
	if _, err := c.stdout.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if now, _, _ := c.Sizes(c.key); now >= before+uint64(len(text)) {
			return
		}
		if time.Now().After(until) {
			c.t.Fatal("the mover does not move")
		}
	}
}

// all lets every reader take pieces until there are so many bytes.
func (c *crowd) all(bytes int) (pieces []string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	pieces = make([]string, len(c.readers))
	var wait sync.WaitGroup
	for i, r := range c.readers {
		wait.Go(func() {
			for n := 0; n < bytes; {
				p, err := r.Next(ctx, true)
				if err != nil {
					c.t.Errorf("reader %d after %q: %v", i, pieces[i], err)
					return
				}
				n += len(p.Data)
				pieces[i] += string(p.Data) + "|"
			}
		})
	}
	wait.Wait()
	return pieces
}

func (c *crowd) expect(bytes int, want string) {
	c.t.Helper()
	for i, got := range c.all(bytes) {
		if got != want {
			c.t.Errorf("reader %d got %.100q, want %.100q", i, got, want)
		}
	}
}

// TestManyFollowersGatherWhatIsSmall: the first piece comes at once. Then they are
// woken together, at the latest when the output ends.
func TestManyFollowersGatherWhatIsSmall(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, output.Config{}.WithPace(slowly(8)), 9)
	c.write("a")
	c.expect(1, "a|")
	got := make(chan []string)
	go func() { got <- c.all(2) }()
	c.write("b")
	c.write("c")
	if err := c.stdout.Close(); err != nil {
		t.Fatal(err)
	}
	c.NoWriter(c.key)
	c.finish(c.key)
	for i, p := range <-got {
		if p != "bc|" {
			t.Errorf("reader %d was woken for %q", i, p)
		}
	}
}

// TestManyFollowersDoNotWaitForMoreThanMuch: a job that writes fast is not behind
// its followers' pace, or a ring could pass them.
func TestManyFollowersDoNotWaitForMoreThanMuch(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, output.Config{}.WithPace(slowly(8)), 9)
	defer c.stdout.Close()
	c.write("a")
	c.expect(1, "a|")
	got := make(chan []string)
	go func() { got <- c.all(1 + 64<<10) }()
	c.write("b")
	for range 16 {
		c.write(strings.Repeat("c", 4<<10))
	}
	for i, p := range <-got {
		if want := "b" + strings.Repeat("c", 64<<10); strings.ReplaceAll(p, "|", "") != want {
			t.Errorf("reader %d got %d bytes", i, len(p))
		}
	}
}

// TestFewFollowersAreWokenAtOnce, and so are those that are left when others go.
func TestFewFollowersAreWokenAtOnce(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, output.Config{}.WithPace(slowly(8)), 9)
	defer c.stdout.Close()
	c.write("a")
	c.expect(1, "a|")
	c.readers[8].Close()
	c.readers[8].Close() // counts once
	c.readers = c.readers[:8]
	for range 3 {
		c.write("b")
		c.expect(1, "b|")
	}
}

func TestGatheringEndsWithTheCaller(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, output.Config{}.WithPace(slowly(0)), 1)
	defer c.stdout.Close()
	c.write("a")
	c.expect(1, "a|")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := c.readers[0].Next(ctx, true)
		done <- err
	}()
	cancel()
	if err := <-done; err == nil {
		t.Error("it went on")
	}
}

func TestPaceGrowsWithTheFollowers(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{1: 0, 8: 0, 9: 9 * time.Millisecond, 50: 50 * time.Millisecond, 1000: 100 * time.Millisecond} {
		if got := output.GatherTime(n); got != want {
			t.Errorf("%d followers gather for %v, want %v", n, got, want)
		}
	}
}
