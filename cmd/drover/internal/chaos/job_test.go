package chaos

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func newRun(t *testing.T) *run {
	t.Helper()
	return &run{dir: t.TempDir(), say: func(string, ...any) {}, ledger: Ledger{Killed: map[string]int{}}}
}

// TestEveryLieIsFound settles jobs whose record and whose own word differ.
func TestEveryLieIsFound(t *testing.T) {
	t.Parallel()
	const (
		succeeded = droverv1.JobState_JOB_STATE_SUCCEEDED
		failed    = droverv1.JobState_JOB_STATE_FAILED
		stopped   = droverv1.JobState_JOB_STATE_STOPPED
		lost      = droverv1.JobState_JOB_STATE_LOST
	)
	for name, c := range map[string]struct {
		said  string // of the job
		code  int    // that it was asked for
		stop  bool
		state droverv1.JobState
		exit  *int32
		want  Ledger
	}{
		"finished":                         {"begin 1\nend 0\n", 0, false, succeeded, proto.Int32(0), Ledger{Finished: 1}},
		"failed as it should":              {"begin 1\nend 7\n", 7, false, failed, proto.Int32(7), Ledger{Failed: 1}},
		"stopped":                          {"begin 1\n", 0, true, stopped, nil, Ledger{Stopped: 1}},
		"stopped before it began":          {"", 0, true, stopped, nil, Ledger{Stopped: 1}},
		"stopped too late":                 {"begin 1\nend 0\n", 0, true, succeeded, proto.Int32(0), Ledger{Finished: 1}},
		"another code":                     {"begin 1\nend 7\n", 7, false, failed, proto.Int32(255), Ledger{FalseCodes: 1}},
		"a code of a job that did not end": {"begin 1\n", 0, false, succeeded, proto.Int32(0), Ledger{FalseCodes: 1}},
		"success of a failure":             {"begin 1\nend 7\n", 7, false, succeeded, proto.Int32(0), Ledger{FalseCodes: 1}},
		"stopped by nobody":                {"begin 1\n", 0, false, stopped, nil, Ledger{FalseCodes: 1}},
		"never began":                      {"", 0, false, succeeded, proto.Int32(0), Ledger{FalseCodes: 1}},
		"lost":                             {"begin 1\n", 0, false, lost, nil, Ledger{Lost: 1}},
		"began twice":                      {"begin 1\nbegin 2\nend 0\n", 0, true, stopped, nil, Ledger{DoubleStarts: 1, Stopped: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRun(t)
			k := task{truth: filepath.Join(t.TempDir(), "truth"), code: c.code}
			if c.stop {
				k.stop = 1
			}
			if c.said != "" {
				if err := os.WriteFile(k.truth, []byte(c.said), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r.settle(k, &droverv1.Job{JobId: "j", State: c.state, ExitCode: c.exit})
			got := r.ledger
			if got.Finished != c.want.Finished || got.Failed != c.want.Failed || got.Stopped != c.want.Stopped ||
				got.Lost != c.want.Lost || got.FalseCodes != c.want.FalseCodes || got.DoubleStarts != c.want.DoubleStarts {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if broken := c.want.Lost + c.want.FalseCodes + c.want.DoubleStarts; len(got.Broken) != broken {
				t.Errorf("broken: %q", got.Broken)
			}
		})
	}
}

func TestEveryByteIsCompared(t *testing.T) {
	t.Parallel()
	k := task{nonce: "n", lines: 3}
	whole := string(k.expected("out"))
	for name, c := range map[string]struct {
		got              string
		whole            bool
		missing, changed uint64
	}{
		"the same":             {whole, true, 0, 0},
		"the beginning":        {whole[:20], false, 0, 0},
		"the beginning only":   {whole[:20], true, uint64(len(whole) - 20), 0},
		"nothing":              {"", true, uint64(len(whole)), 0},
		"one byte":             {whole[:10] + "x" + whole[11:], true, 0, uint64(len(whole) - 10)},
		"too much":             {whole + "more", true, 0, 4},
		"of a stopped one too": {"x", false, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRun(t)
			r.compare("j", "stdout", []byte(c.got), []byte(whole), c.whole)
			if l := r.ledger; l.BytesMissing != c.missing || l.BytesChanged != c.changed || l.BytesRead != uint64(len(c.got)) {
				t.Errorf("%+v", l)
			}
		})
	}
}

func TestTheSumIsCompared(t *testing.T) {
	t.Parallel()
	end := func(size uint64, of string) *droverv1.OutputEnd {
		sum := sha256.Sum256([]byte(of))
		return &droverv1.OutputEnd{Size: size, Sha256: hex.EncodeToString(sum[:])}
	}
	for name, c := range map[string]struct {
		end  *droverv1.OutputEnd
		good bool
	}{
		"the same":     {end(4, "data"), true},
		"another sum":  {end(4, "dato"), false},
		"another size": {end(5, "data"), false},
		"no sum":       {&droverv1.OutputEnd{Size: 4}, false},
		"no end":       {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRun(t)
			r.sum("j", "stdout", []byte("data"), c.end)
			if good := len(r.ledger.Broken) == 0; good != c.good {
				t.Errorf("broken: %q", r.ledger.Broken)
			}
		})
	}
}

func TestTheLedgerMustAddUp(t *testing.T) {
	t.Parallel()
	good := Ledger{Submitted: 3, Finished: 1, Failed: 1, Stopped: 1}
	if !good.Good() {
		t.Error("a good one is refused")
	}
	for name, spoil := range map[string]func(*Ledger){
		"one is missing": func(l *Ledger) { l.Submitted++ },
		"one lives":      func(l *Ledger) { l.Submitted++; l.Live++ },
		"one is broken":  func(l *Ledger) { l.Broken = append(l.Broken, "x") },
	} {
		l := good
		spoil(&l)
		if l.Good() {
			t.Errorf("%s, and it is good", name)
		}
	}
}
