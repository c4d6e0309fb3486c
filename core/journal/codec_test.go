package journal

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
)

func anySpec(t *rapid.T) job.Spec {
	str := rapid.String()
	dur := rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.Int64().Draw(t, "duration")) })
	s := job.Spec{
		Worker: str.Draw(t, "worker"), Path: str.Draw(t, "path"), Command: str.Draw(t, "command"),
		Args:    rapid.SliceOf(str).Draw(t, "args"),
		Env:     rapid.MapOf(str, str).Draw(t, "env"),
		Labels:  rapid.MapOf(str, str).Draw(t, "labels"),
		Timeout: dur.Draw(t, "timeout"), IdleTimeout: dur.Draw(t, "idle"), QueueTimeout: dur.Draw(t, "queue"),
		Grace: dur.Draw(t, "grace"), Linger: dur.Draw(t, "linger"),
		DetachChildren: rapid.Bool().Draw(t, "detach"),
		Limits: job.Limits{
			CPUMillis: rapid.Uint32().Draw(t, "cpu"), Memory: rapid.Uint64().Draw(t, "memory"), Pids: rapid.Uint32().Draw(t, "pids"),
		},
		Workdir: str.Draw(t, "workdir"), User: str.Draw(t, "user"), Name: str.Draw(t, "name"),
		Priority:     rapid.Int32().Draw(t, "priority"),
		OutputPolicy: job.OutputPolicy(rapid.Uint8Range(0, 2).Draw(t, "policy")),
		OutputLimit:  rapid.Uint64().Draw(t, "limit"),
		UploadSHA256: str.Draw(t, "upload"),
		OnPartition:  job.OnPartition(rapid.IntRange(0, 1).Draw(t, "partition")),
	}
	if rapid.Bool().Draw(t, "retry") {
		s.Retry = job.Retry{
			Max: rapid.Uint32Range(1, 9).Draw(t, "max"), OnLost: true, OnFailure: true,
			ExitCodes: rapid.SliceOf(rapid.Int32()).Draw(t, "codes"), Backoff: dur.Draw(t, "backoff"),
		}
	}
	return s
}

func TestIntentsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := Record{
			Kind: KindIntent, Key: key(rapid.Byte().Draw(t, "key")),
			Fence: job.Fence{Term: rapid.Uint64().Draw(t, "term"), Counter: rapid.Uint64().Draw(t, "counter")},
			Intent: &Intent{
				BootID: rapid.String().Draw(t, "boot"), Spec: anySpec(t), Folder: rapid.Bool().Draw(t, "folder"),
				Mark: "m", Stdout: "o", Stderr: "e", Cgroup: "c",
				Script: Script{Generation: rapid.Uint64().Draw(t, "generation"), Folder: "f", Name: "n", SHA256: "s"},
				Runner: Runner{Name: "r", Version: "v", SHA256: "h"},
			},
		}
		got, err := parseRecord(appendRecord(nil, &want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func TestReportsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := job.Report{
			Key: key(1), Sequence: rapid.Uint64().Draw(t, "sequence"),
			State:  job.State(rapid.Uint8Range(uint8(job.Succeeded), uint8(job.Lost)).Draw(t, "state")),
			Reason: rapid.String().Draw(t, "reason"), Message: rapid.String().Draw(t, "message"),
			PID: rapid.Int().Draw(t, "pid"), Signal: rapid.String().Draw(t, "signal"),
			Evidence: job.Evidence(rapid.Uint8Range(0, 4).Draw(t, "evidence")),
			Start:    time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "start")).UTC(),
			Stdout:   job.Stream{Size: rapid.Uint64().Draw(t, "size"), SHA256: "aa"},
			Stderr:   job.Stream{SHA256: "bb"}, ScriptSHA256: "cc", Runner: "bash", RunnerVersion: "1",
		}
		if rapid.Bool().Draw(t, "coded") {
			code := rapid.Int32().Draw(t, "code")
			r.ExitCode = &code
		}
		if rapid.Bool().Draw(t, "proved") {
			r.StopProof = &job.StopProof{Method: "cgroup-kill", Termed: rapid.Uint32().Draw(t, "termed"), Took: time.Second}
		}
		want := Record{Kind: KindDone, Key: key(1), Done: &Done{Report: r, Open: rapid.Bool().Draw(t, "open")}}
		got, err := parseRecord(appendRecord(nil, &want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func TestSmallRecordsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	for _, want := range []Record{
		{Kind: KindFence, Fence: job.Fence{Term: 3, Counter: 4}, Floor: job.Fence{Term: 2, Counter: 9}, Epoch: 2},
		{Kind: KindFence, Fence: job.Fence{Term: 3}, Lease: &Lease{BootID: "b", Until: time.Hour, Over: true, Lapses: 4}},
		{Kind: KindFence, Fence: job.Fence{Term: 3}, Life: job.Life{Term: 3, Mark: job.Mark{1, 2}}},
		{Kind: KindStarted, Key: key(1), Started: &Started{PID: 5, StartTicks: 1 << 60, Wall: time.Unix(5, 6).UTC(), Boot: time.Hour}},
		{Kind: KindStop, Key: key(1), Fence: job.Fence{Term: 1, Counter: 1}, Stop: &Stop{Reason: "USER", Grace: 0}},
		{Kind: KindExited, Key: key(1), Exit: &Exit{Code: -1, Evidence: job.PidFD}},
		{Kind: KindExited, Key: key(1), Exit: &Exit{SpawnError: "NOT_FOUND: ruby", Wall: time.Unix(9, 0).UTC()}},
		{Kind: KindAcked, Key: key(1)},
		{Kind: KindForgotten, Key: key(1), Floor: job.Fence{Term: 1, Counter: 1}},
	} {
		got, err := parseRecord(appendRecord(nil, &want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// Every field of the spec is in the codec, so that a field added to job.Spec
// and forgotten here cannot be lost over a restart.
func TestEverySpecFieldIsKept(t *testing.T) {
	t.Parallel()
	kept := map[string]bool{
		"Stdin": false, "Secrets": false, "Upload": false, // files, on purpose
	}
	typ := reflect.TypeFor[job.Spec]()
	for i := range typ.NumField() {
		name := typ.Field(i).Name
		if _, left := kept[name]; left {
			continue
		}
		var s job.Spec
		f := reflect.ValueOf(&s).Elem().Field(i)
		fill(f)
		r := Record{Kind: KindIntent, Key: key(1), Intent: &Intent{Spec: s}}
		got, err := parseRecord(appendRecord(nil, &r))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, got.Intent.Spec); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(3)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(2)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v", "": "empty"}))
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem()), e))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	default:
		panic("unreachable: " + v.Kind().String())
	}
}

func TestSecretsAndStdinAreNeverInTheJournal(t *testing.T) {
	t.Parallel()
	r := intent(1, 1)
	r.Intent.Spec.Secrets = map[string][]byte{"token": []byte("hunter2hunter2")}
	r.Intent.Spec.Stdin = []byte("typed by a person")
	raw := appendRecord(nil, &r)
	if bytes.Contains(raw, []byte("hunter2")) || bytes.Contains(raw, []byte("typed")) {
		t.Fatalf("journal holds %q", raw)
	}
}

func TestP11FieldsOfANewerWorkerAreSkipped(t *testing.T) {
	t.Parallel()
	want := intent(1, 1)
	raw := appendRecord(nil, &want)
	raw = protowire.AppendTag(raw, 900, protowire.BytesType)
	raw = protowire.AppendString(raw, "from the future")
	raw = protowire.AppendTag(raw, 901, protowire.Fixed64Type)
	raw = protowire.AppendFixed64(raw, 7)
	got, err := parseRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, r := range life(1) {
		f.Add(appendRecord(nil, &r))
	}
	f.Add([]byte{2, 0x0a, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRecord(raw)
		if err != nil {
			return
		}
		again, err := parseRecord(appendRecord(nil, &r))
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if diff := cmp.Diff(r, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-first +second):\n%s", diff)
		}
	})
}

// FuzzOpen: whatever is on the disk, Open answers, and what it accepts it can
// go on with.
func FuzzOpen(f *testing.F) {
	whole := []byte(magic)
	for _, r := range life(1) {
		whole = appendFrame(whole, &r)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(bytes.Clone(whole), 0, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add([]byte("DRV"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := Config{Path: path, Log: slog.New(slog.DiscardHandler)}
		j, before, err := Open(c)
		if err != nil {
			return
		}
		if err := j.Append(done(250)); err != nil {
			t.Fatal(err)
		}
		if err := j.Compact(); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j, after, err := Open(c)
		if err != nil {
			t.Fatalf("accepted and then refused: %v", err)
		}
		defer j.Close()
		if len(after.Attempts) < len(before.Attempts) || len(after.Attempts) == 0 {
			t.Fatalf("%d attempts became %d", len(before.Attempts), len(after.Attempts))
		}
	})
}
