package scheduler

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
)

// drawInto draws a value for every field, also for those that are added later.
func drawInto(t *rapid.T, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		if n := rapid.Int64Range(0, 1<<40).Draw(t, "time"); n > 0 {
			v.Set(reflect.ValueOf(time.Unix(n/1000, n*7919%1e9).UTC()))
		}
		return
	case uuid.UUID:
		v.Set(reflect.ValueOf(uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))))
		return
	}
	if rapid.IntRange(0, 3).Draw(t, "zero") == 0 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "string"))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int") >> (64 - v.Type().Bits()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "uint") >> (64 - v.Type().Bits()))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		drawInto(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "len"), 3))
		for i := range v.Len() {
			drawInto(t, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rapid.IntRange(0, 3).Draw(t, "len") {
			value := reflect.New(v.Type().Elem()).Elem()
			drawInto(t, value)
			v.SetMapIndex(reflect.ValueOf(rapid.String().Draw(t, "key")), value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			drawInto(t, v.Field(i))
		}
	default:
		t.Fatalf("%v", v.Type())
	}
}

// TestARecordIsReadAsEncodingJSONWouldHaveWrittenIt for every field that a job
// has, or gets.
func TestARecordIsReadAsEncodingJSONWouldHaveWrittenIt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var j, got, want job.Job
		drawInto(t, reflect.ValueOf(&j).Elem())
		short, err := appendJSON(nil, reflect.ValueOf(&j).Elem())
		if err != nil {
			t.Fatal(err)
		}
		long, err := json.Marshal(&j)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(short, &got); err != nil {
			t.Fatalf("%v: %s", err, short)
		}
		if err := json.Unmarshal(long, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s\n%s", short, diff)
		}
		// P1: the hash of a request is the same after a restart.
		if specHash(&j.Spec) != specHash(&got.Spec) {
			t.Fatalf("the hash of what was read is another")
		}
	})
}

func TestWhatHasNoFormIsAnError(t *testing.T) {
	t.Parallel()
	for _, v := range []any{struct{ F func() }{func() {}}, []any{make(chan int)}, map[string]any{"": 1i}} {
		if b, err := appendJSON(nil, reflect.ValueOf(v)); err == nil {
			t.Errorf("%T: %s", v, b)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	code := int32(0)
	j := job.Job{
		ID: uuid.New(), Spec: job.Spec{Command: "bash", Path: "line.sh", Grace: job.DefaultGrace, Linger: job.DefaultLinger}, State: job.Succeeded,
		Attempt: 1, Worker: uuid.New(), WorkerName: "w1", BootID: uuid.NewString(), Fence: job.Fence{Term: 1, Counter: 1234}, Submit: time.Now(),
		RequestedBy: "admin", RequestID: uuid.NewString(), Result: job.Report{
			Sequence: 3, State: job.Succeeded, PID: 1234, ExitCode: &code, Start: time.Now(), End: time.Now(), Runner: "bash", RunnerVersion: "v1",
		},
	}
	b.Run("short", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := appendJSON(nil, reflect.ValueOf(&j).Elem()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("long", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(&j); err != nil {
				b.Fatal(err)
			}
		}
	})
}
