package e2e_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bench runs "drover bench" as short as it goes; the figures mean nothing.
func bench(t *testing.T, into any, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "drover"), append([]string{"bench", "-o", "json"}, args...)...)
	cmd.Env = append(cmd.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench %q: %v\n%s\n%s", args, err, out, stderrOf(err))
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatalf("bench %q printed %s: %v", args, out, err)
	}
}

func stderrOf(err error) []byte {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.Stderr
	}
	return nil
}

func TestBenchLatencyMeasuresEveryRow(t *testing.T) {
	t.Parallel()
	var got struct {
		Results []struct {
			What, Job, Against string
			Drover, Other      struct {
				P50     float64 `json:"p50_us"`
				Samples int     `json:"samples"`
			}
		} `json:"results"`
	}
	bench(t, &got, "latency", "--rounds", "1", "--slice", "10ms")
	rows := map[string]bool{}
	for _, r := range got.Results {
		rows[r.What+" "+r.Job+" "+r.Against] = true
		if r.Drover.P50 <= 0 || r.Other.P50 <= 0 || r.Drover.Samples == 0 || r.Drover.Samples != r.Other.Samples {
			t.Errorf("no figures in turns: %+v", r)
		}
	}
	for _, want := range []string{"one_job true fork_wait", "one_job bash fork_wait", "line python pipe"} {
		if !rows[want] {
			t.Errorf("no row %q in %v", want, rows)
		}
	}
}

// TestBenchScaleLosesNoJob: simulated workers join, survive the death of their
// scheduler and run everything.
func TestBenchScaleLosesNoJob(t *testing.T) {
	t.Parallel()
	var got struct {
		Results []struct {
			Workers  int
			Finished int
			Wrong    *int `json:"not_succeeded"`
			PSS      int  `json:"scheduler_pss"`
			Queued   struct {
				Samples int `json:"samples"`
			} `json:"submit_queued"`
		} `json:"results"`
	}
	bench(t, &got, "scale", "--workers", "3", "--steady", "10ms", "--queued", "20", "--more", "10", "--samples", "5")
	if len(got.Results) != 1 {
		t.Fatalf("%d results", len(got.Results))
	}
	r := got.Results[0]
	if r.Workers != 3 || r.Finished != 3+20+2*5+10 || r.Wrong == nil || *r.Wrong != 0 || r.PSS == 0 || r.Queued.Samples != 5 {
		t.Errorf("result %+v", r)
	}
}

// TestBenchStreamSeesEveryByteByEveryWay: what is compared byte by byte must
// come live and from the finished job, and the followers must see every line.
func TestBenchStreamSeesEveryByteByEveryWay(t *testing.T) {
	t.Parallel()
	var got struct {
		Transfers []struct {
			What, By, SHA256 string
			Bytes            int
			MBPerS           struct{ Median float64 }  `json:"mb_per_s"`
			X                *struct{ Median float64 } `json:"live_is_x"`
			CPU              map[string]float64        `json:"cpu_us_per_mib"`
		} `json:"transfers"`
		Followers []struct {
			Followers int
			JobMS     struct{ Median float64 }  `json:"job_ms"`
			Slowed    *struct{ Median float64 } `json:"slowed_percent"`
		} `json:"followers"`
	}
	bench(t, &got, "stream", "--rounds", "1", "--size", "3M", "--lines", "20", "--followers", "1,4")
	if len(got.Transfers) != 3 || len(got.Followers) != 3 {
		t.Fatalf("result %+v", got)
	}
	for i, want := range []string{"live drover", "finished drover", "live pipe"} {
		r := got.Transfers[i]
		if r.What+" "+r.By != want || r.Bytes != 3<<20 || len(r.SHA256) != 64 || r.MBPerS.Median <= 0 || (r.X == nil) != (i == 0) {
			t.Errorf("%s: %+v", want, r)
		}
	}
	for i, want := range []int{0, 1, 4} {
		if r := got.Followers[i]; r.Followers != want || r.JobMS.Median <= 0 || (r.Slowed == nil) != (i == 0) {
			t.Errorf("%d followers: %+v", want, r)
		}
	}
}

// TestBenchAllPutsThePartsTogether: in one document, and the same in a file.
func TestBenchAllPutsThePartsTogether(t *testing.T) {
	t.Parallel()
	saved := filepath.Join(t.TempDir(), "new", "figures.json")
	var got, file map[string]json.RawMessage
	bench(t, &got, "all", "--skip", "jobs,latency,memory", "--rounds", "1", "--slice", "10ms",
		"--workers", "2", "--steady", "10ms", "--queued", "5", "--size", "100K", "--lines", "5", "--followers", "1", "--save", saved)
	data, err := os.ReadFile(saved)
	if err == nil {
		err = json.Unmarshal(data, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, parts := range []map[string]json.RawMessage{got, file} {
		if len(parts) != 3 || len(parts["spawn"]) == 0 || len(parts["stream"]) == 0 || len(parts["scale"]) == 0 {
			t.Errorf("parts %s", parts)
		}
	}
}
