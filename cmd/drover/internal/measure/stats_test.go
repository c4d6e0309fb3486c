package measure_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/cmd/drover/internal/measure"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func micros(us ...int) []time.Duration {
	out := make([]time.Duration, len(us))
	for i, u := range us {
		out[i] = time.Duration(u) * time.Microsecond
	}
	return out
}

func TestQuantilesAreMeasuredValues(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100-i) * time.Microsecond // 100 ... 1
	}
	for _, c := range []struct {
		samples []time.Duration
		want    measure.Quantiles
	}{
		{nil, measure.Quantiles{}},
		{micros(7), measure.Quantiles{P50: 7, P95: 7, P99: 7, Max: 7, Samples: 1}},
		{micros(3, 1, 2), measure.Quantiles{P50: 2, P95: 3, P99: 3, Max: 3, Samples: 3}},
		{micros(4, 1, 2, 3), measure.Quantiles{P50: 2, P95: 4, P99: 4, Max: 4, Samples: 4}},
		{hundred, measure.Quantiles{P50: 50, P95: 95, P99: 99, Max: 100, Samples: 100}},
	} {
		if got := measure.NewQuantiles(c.samples); got != c.want {
			t.Errorf("%d samples: %+v, want %+v", len(c.samples), got, c.want)
		}
	}
}

// turns is a sampler that counts and answers with the next of its values.
type turns struct {
	values []time.Duration
	calls  int
	log    *[]string
	name   string
	err    error
}

func (s *turns) sample(context.Context) ([]time.Duration, error) {
	*s.log = append(*s.log, s.name)
	s.calls++
	return []time.Duration{s.values[(s.calls-1)%len(s.values)]}, s.err
}

func TestLatenciesAreTakenInTurnsAndComparedPerRound(t *testing.T) {
	t.Parallel()
	var log []string
	drover := &turns{values: micros(300, 600), log: &log, name: "d"}
	other := &turns{values: micros(100, 300), log: &log, name: "o"}
	got, err := measure.InTurns(t.Context(), measure.Latency{What: "one_job", Job: "true", Against: "fork_wait"},
		drover.sample, other.sample, measure.Plan{Rounds: 2})
	if err != nil {
		t.Fatal(err)
	}
	if order := strings.Join(log, ""); order != "dodo" {
		t.Errorf("the order was %s", order)
	}
	if want := (measure.Spread{Median: 3, Min: 2, Max: 3}); got.RatioP50 != want {
		t.Errorf("ratios %+v, want %+v", got.RatioP50, want)
	}
	if got.Drover.P95 != 600 || got.Other.P95 != 300 || got.Drover.Samples != 2 {
		t.Errorf("got %+v", got)
	}
	drover.err = errors.New("no cluster")
	if _, err := measure.InTurns(t.Context(), measure.Latency{}, drover.sample, other.sample, measure.Plan{Rounds: 1}); err == nil {
		t.Error("no error of a sampler that failed")
	}
}

// TestLatencyFields: others read these names.
func TestLatencyFields(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(measure.Latency{})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"what":"","job":"","drover":{"p50_us":0,"p95_us":0,"p99_us":0,"max_us":0,"samples":0},"against":"",` +
		`"other":{"p50_us":0,"p95_us":0,"p99_us":0,"max_us":0,"samples":0},"ratio_p50":{"median":0,"min":0,"max":0},` +
		`"ratio_p95":{"median":0,"min":0,"max":0},"ratio_p99":{"median":0,"min":0,"max":0}}`
	if string(data) != want {
		t.Errorf("%s\nwant %s", data, want)
	}
}

func stamp(t *testing.T) string {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d\n", now.Nano())
}

func TestLinesHaveAnAgeHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	sample := measure.Lines(3, time.Millisecond, func(_ context.Context, args []string, out io.Writer) error {
		if strings.Join(args, " ") != "3 0.001" {
			t.Errorf("arguments %q", args)
		}
		one, two := stamp(t), stamp(t)
		for _, piece := range []string{one + two[:5], two[5:], stamp(t)} {
			if _, err := io.WriteString(out, piece); err != nil {
				return err
			}
		}
		return nil
	})
	ages, err := sample(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range ages {
		if a < 0 {
			t.Errorf("a line from the future: %v", ages)
		}
	}
}

func TestLinesThatAreMissingOrDamagedAreNoSamples(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "12\n", "12\n13\n14", "12\nx\n"} {
		_, err := measure.Lines(2, 0, func(_ context.Context, _ []string, out io.Writer) error {
			_, err := io.WriteString(out, text)
			return err
		})(t.Context())
		if err == nil {
			t.Errorf("%q passes for two lines", text)
		}
	}
}

// batches is a peer that notes how many jobs it was given.
type batches struct {
	sizes []int
	argv  []string
	err   error
}

func (b *batches) Name() string { return "fake" }

func (b *batches) Run(_ context.Context, argv []string, n int) error {
	b.sizes, b.argv = append(b.sizes, n), argv
	return b.err
}

func TestPeersRunTheSameCommandInEachRound(t *testing.T) {
	t.Parallel()
	peer := &batches{}
	plan := measure.Plan{Rounds: 3, Slice: 10 * time.Millisecond, InFlight: 1, Peers: []measure.Peer{peer}}
	w := workload(t)
	r, err := measure.Compare(t.Context(), &instant{state: droverv1.JobState_JOB_STATE_SUCCEEDED}, w, plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(peer.sizes) != 2+3 {
		t.Errorf("batches of %v, want two to learn the rate and one per round", peer.sizes)
	}
	if len(peer.argv) != 1 || peer.argv[0] != w.Bare.Path {
		t.Errorf("it was to run %q", peer.argv)
	}
	if len(r.Peers) != 1 || r.Peers[0].Peer != "fake" || r.Peers[0].JobsPerS <= 0 || r.Peers[0].DroverIsX.Median <= 0 {
		t.Errorf("results %+v", r.Peers)
	}
	peer.err = errors.New("broken")
	if _, err := measure.Compare(t.Context(), &instant{state: droverv1.JobState_JOB_STATE_SUCCEEDED}, w, plan); err == nil || !strings.Contains(err.Error(), "fake") {
		t.Errorf("a failing peer: %v", err)
	}
}
