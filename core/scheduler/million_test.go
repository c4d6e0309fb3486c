package scheduler

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/embedded"
)

// loaded is what a process that loads a store says of itself.
type loaded struct {
	Seconds         float64
	PeakKB          int64
	Live, Published int
}

// loadDir tells the test process that it is the one that loads.
const loadDir = "DROVER_TEST_LOAD"

// TestP15RestartLoadsLiveJobsOnly: a process of its own opens a store as a
// scheduler does. Finished jobs stay on disk, all that is queued is back.
func TestP15RestartLoadsLiveJobsOnly(t *testing.T) {
	t.Parallel()
	finished, queued := 20_000, 2_000
	if os.Getenv("DROVER_LONG") != "" {
		finished, queued = 1_000_000, 100_000
	}
	dir := t.TempDir()
	fill(t, dir, finished, queued)
	child := exec.Command(os.Args[0], "-test.run=^TestP15LoadingProcess$", "-test.v")
	child.Env = append(os.Environ(), loadDir+"="+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("the loading process: %v\n%s", err, out)
	}
	_, text, ok := strings.Cut(string(out), "LOADED ")
	if !ok {
		t.Fatalf("the loading process said\n%s", out)
	}
	var l loaded
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&l); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d finished and %d queued jobs: ready after %.2f s, peak of %d MiB", finished, queued, l.Seconds, l.PeakKB>>10)
	if l.Live != queued || l.Published != queued {
		t.Errorf("%d jobs in the machine and %d in views, want the %d live ones", l.Live, l.Published, queued)
	}
}

// TestP15LoadingProcess is the process above.
func TestP15LoadingProcess(t *testing.T) {
	dir := os.Getenv(loadDir)
	if dir == "" {
		t.Skip("run by TestP15RestartLoadsLiveJobsOnly")
	}
	begin := time.Now()
	st, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	s, err := New(t.Context(), Config{Store: st, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := loaded{Seconds: time.Since(begin).Seconds(), PeakKB: peakKB(t), Live: len(s.machine.jobs), Published: len(s.hub.jobs)}
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("LOADED %s\n", data)
}

func peakKB(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// fill writes records as a scheduler does: the finished ones are older.
func fill(t *testing.T, dir string, finished, queued int) {
	t.Helper()
	st, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	var b store.Batch
	w := registry.Worker{}
	w.ID, w.Name = uuid.New(), "w1"
	if err := putEffect(&b, &Effect{Worker: &w}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now().Add(-time.Hour)
	for i := range finished + queued {
		j := recorded(i, begin, w)
		e := Effect{Put: &j, New: true, Hash: specHash(&j.Spec)}
		if i < finished {
			end(&j, begin)
			e.Drop = true
		}
		if err := putEffect(&b, &e); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 999 || i == finished+queued-1 {
			if err := st.Apply(context.Background(), &b); err != nil {
				t.Fatal(err)
			}
			b = store.Batch{}
		}
	}
}

// recorded is a job as people submit them. Its id has the time of its number.
func recorded(i int, begin time.Time, w registry.Worker) job.Job {
	at := begin.Add(time.Duration(i) * time.Millisecond)
	return job.Job{
		ID: pastID(at, i), State: job.Queued, Reason: job.ReasonNoSlot, Message: "every worker that fits is busy",
		Submit: at.UTC(), RequestedBy: "alice", RequestID: uuid.NewString(),
		Spec: job.Spec{
			Command: "bash", Path: "reports/daily.sh", Args: []string{"--day", strconv.Itoa(i)},
			Env: map[string]string{"REGION": "east", "VERBOSE": "1"}, Labels: map[string]string{"team": "data"},
		},
	}
}

// pastID is a UUIDv7 of some time (RFC 9562, 5.7).
func pastID(at time.Time, i int) job.ID {
	id := uuid.New()
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16|0x7000|uint64(i)&0xfff)
	return id
}

func end(j *job.Job, begin time.Time) {
	zero := int32(0)
	j.State, j.Reason, j.Message, j.Attempt = job.Succeeded, "", "", 1
	j.Fence = job.Fence{Term: 1, Counter: 1}
	j.Result = job.Report{
		Key: job.Key{Job: j.ID, Attempt: 1}, State: job.Succeeded, Sequence: 3, ExitCode: &zero, Evidence: job.Wait,
		Start: begin, End: begin.Add(time.Second), Stdout: job.Stream{Size: 1234, SHA256: strings.Repeat("ab", 32)},
	}
}
