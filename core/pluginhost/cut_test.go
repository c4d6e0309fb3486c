package pluginhost

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// TestFramesToAPluginAreCut: sixty starts with a megabyte of arguments each reach a
// plugin that takes gRPC's default of 4 MiB, and nothing about a start goes before it.
func TestFramesToAPluginAreCut(t *testing.T) {
	t.Parallel()
	waits := &runnerv1.SessionRequest{Signals: []*runnerv1.Signal{{Id: "59", Signal: 15}}}
	for i := range 60 {
		waits.Starts = append(waits.Starts, &runnerv1.Start{Id: fmt.Sprint(i), Args: []string{strings.Repeat("a", 1<<20)}})
		waits.Acks = append(waits.Acks, fmt.Sprint("old", i))
	}
	for i := range 50_000 {
		waits.Acks = append(waits.Acks, strings.Repeat("x", 60)+fmt.Sprint(i))
	}
	starts, signals, acks := 0, 0, 0
	for range 1000 {
		f := cutFrame(waits)
		n := proto.Size(f)
		if n == 0 {
			break
		}
		if n > 4<<20 {
			t.Errorf("a frame of %d bytes", n)
		}
		if starts += len(f.GetStarts()); starts < 60 && len(f.GetSignals())+len(f.GetAcks()) > 0 {
			t.Errorf("a signal or an ack passes %d starts", 60-starts)
		}
		signals, acks = signals+len(f.GetSignals()), acks+len(f.GetAcks())
	}
	if starts != 60 || signals != 1 || acks != 50_060 {
		t.Errorf("%d starts, %d signals, %d acks were sent", starts, signals, acks)
	}
	large := &runnerv1.SessionRequest{Starts: []*runnerv1.Start{{Id: "large", Args: []string{strings.Repeat("a", 3<<20)}}}}
	if f := cutFrame(large); len(f.GetStarts()) != 1 || len(large.GetStarts()) != 0 {
		t.Error("a start that is larger than a frame should be is not sent alone")
	}
}
