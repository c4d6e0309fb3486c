package worker

import (
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/pluginhost"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// TestP6NoEndOfAPluginReadsAsAnother: whatever numbers a plugin sends, exit code 0 is
// recorded for exit code 0 alone, and what cannot be is no result.
func TestP6NoEndOfAPluginReadsAsAnother(t *testing.T) {
	t.Parallel()
	number := rapid.OneOf(rapid.Int32Range(-2, 130), rapid.Int32Range(250, 260), rapid.Int32())
	rapid.Check(t, func(t *rapid.T) {
		n := number.Draw(t, "number")
		e := &runnerv1.Exited{Id: "x", Pid: rapid.Int64().Draw(t, "pid"), Time: &timestamppb.Timestamp{Seconds: rapid.Int64().Draw(t, "seconds")}}
		told := rapid.SampledFrom([]string{"code", "signal", "nothing"}).Draw(t, "told")
		switch told {
		case "code":
			e.Result = &runnerv1.Exited_ExitCode{ExitCode: n}
		case "signal":
			e.Result = &runnerv1.Exited_Signal{Signal: n}
		}
		got := processEvent(&pluginhost.Event{ID: "x", Exited: e, Evidence: job.Wait})
		if got.Exit == nil {
			if !got.Gone || told == "code" || told == "signal" && n > 0 && n < 128 {
				t.Fatalf("%s %d became %+v", told, n, got)
			}
			return
		}
		if _, err := got.Exit.Time.MarshalJSON(); err != nil {
			t.Fatal(err)
		}
		kept := got.Exit.record()
		switch {
		case told == "code" && kept.Code == n && kept.Signal == "":
		case told == "signal" && kept.Code == 0 && kept.Signal == signalName(syscall.Signal(n)) && n > 0:
		default:
			t.Fatalf("%s %d became %+v", told, n, kept)
		}
	})
}
