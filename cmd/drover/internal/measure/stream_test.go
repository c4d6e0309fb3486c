package measure_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/measure"
)

func pattern(t *testing.T, size int64) (*measure.Pattern, []byte) {
	t.Helper()
	p, err := measure.NewPattern(size)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pattern")
	if err := p.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p, data
}

func TestAPatternIsWhatItSaysAndRepeatsOnlyLate(t *testing.T) {
	t.Parallel()
	const block = 8 << 20
	for _, size := range []int64{1, 1000, block, block + 1} {
		p, data := pattern(t, size)
		sum := sha256.Sum256(data)
		if int64(len(data)) != size || p.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%d bytes: %d in the file, sum %s, said %s", size, len(data), hex.EncodeToString(sum[:]), p.SHA256)
		}
		if size > block && data[block] != data[0] {
			t.Error("the second block is not the first one")
		}
	}
}

// pour copies data in pieces that fit no block.
func pour(data []byte) func(context.Context, io.Writer) error {
	return func(_ context.Context, out io.Writer) error {
		for len(data) > 0 {
			n := min(len(data), 1_000_003)
			if _, err := out.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	}
}

func again(data []byte) func(context.Context, io.Writer) error {
	return func(ctx context.Context, out io.Writer) error { return pour(data)(ctx, out) }
}

func TestCarryComparesWaysInTheSameRounds(t *testing.T) {
	t.Parallel()
	p, data := pattern(t, 9<<20)
	var order []string
	way := func(what string, d time.Duration) measure.Way {
		return measure.Way{What: what, By: "test", Processes: map[string][]int{"client": {os.Getpid()}}, Run: func(ctx context.Context, out io.Writer) error {
			order = append(order, what)
			time.Sleep(d)
			return again(data)(ctx, out)
		}}
	}
	got, err := measure.Carry(t.Context(), measure.StreamPlan{
		Rounds: 2, Pattern: p, Ways: []measure.Way{way("a", 0), way("b", 300*time.Millisecond)},
		After: func(context.Context) error { order = append(order, "|"); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(order, ""); s != "ab|ab|ab|" {
		t.Errorf("taken in the order %s", s)
	}
	if got[0].FirstIsX != nil || got[1].FirstIsX == nil || got[1].FirstIsX.Median <= 1 {
		t.Errorf("ratios %+v", got)
	}
	if got[0].MBPerS.Median <= 0 || got[0].SHA256 != p.SHA256 || got[0].Bytes != 9<<20 {
		t.Errorf("result %+v", got[0])
	}
	if _, ok := got[0].CPUMicrosMiB["client"]; !ok {
		t.Error("no processor time of the client")
	}
}

func TestCarryFindsBytesThatAreMissingOrOthers(t *testing.T) {
	t.Parallel()
	p, data := pattern(t, 9<<20)
	changed := bytes.Clone(data)
	changed[len(changed)-1] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"one is missing": {data[:len(data)-1], "of 9437184 bytes came"},
		"one too many":   {append(bytes.Clone(data), 0), "were written"},
		"the last one":   {changed, "are others"},
	} {
		warm := true
		_, err := measure.Carry(t.Context(), measure.StreamPlan{Rounds: 1, Pattern: p, Ways: []measure.Way{{Run: func(ctx context.Context, out io.Writer) error {
			if warm {
				warm = false
				return again(data)(ctx, out)
			}
			return again(c.data)(ctx, out)
		}}}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFollowComparesWithNoFollowerOfTheSameRound(t *testing.T) {
	t.Parallel()
	var numbers []int
	times := map[int]time.Duration{0: 100 * time.Millisecond, 1: 105 * time.Millisecond, 100: 150 * time.Millisecond}
	plan := measure.FollowersPlan{
		Rounds: 2, Followers: []int{1, 100}, Processes: map[string][]int{"client": {os.Getpid()}},
		Run: func(_ context.Context, n int) (time.Duration, error) {
			numbers = append(numbers, n)
			return times[n], nil
		},
	}
	got, err := measure.Follow(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || len(numbers) != 6 || numbers[3] != 0 || numbers[5] != 100 {
		t.Fatalf("%+v in the order %v", got, numbers)
	}
	if got[0].SlowedPct != nil || got[0].JobMS.Median != 100 {
		t.Errorf("without a follower %+v", got[0])
	}
	for i, want := range map[int]float64{1: 5, 2: 50} {
		if s := got[i].SlowedPct; s == nil || s.Median < want-0.01 || s.Median > want+0.01 {
			t.Errorf("%d followers slowed it by %+v percent, want %v", got[i].Followers, s, want)
		}
	}
	broken := errors.New("no cluster")
	plan.Run = func(context.Context, int) (time.Duration, error) { return 0, broken }
	if _, err := measure.Follow(t.Context(), plan); !errors.Is(err, broken) {
		t.Errorf("a failing run: %v", err)
	}
}
