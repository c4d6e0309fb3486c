package pluginhost

import (
	"io"
	"os"
	"strconv"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// frames is a session that brings what it holds, and ends.
type frames struct {
	grpc.ClientStream
	left []*runnerv1.SessionResponse
}

func (f *frames) Send(*runnerv1.SessionRequest) error { return nil }

func (f *frames) Recv() (*runnerv1.SessionResponse, error) {
	if len(f.left) == 0 {
		return nil, io.EOF
	}
	next := f.left[0]
	f.left = f.left[1:]
	return next, nil
}

// TestAHandleIsClosedOnce: a plugin that an earlier worker started may name an
// attempt twice in one frame. Closing the handle that is in use would close,
// later, whatever file has the number by then.
func TestAHandleIsClosedOnce(t *testing.T) {
	t.Parallel()
	self := os.Getpid()
	st, err := pidfd.ReadStat(self)
	if err != nil {
		t.Fatal(err)
	}
	p := newHosted(&Host{config: Config{Events: func([]Event) {}}}, Manifest{})
	p.process = &process{foreign: true}
	p.attempts["a"] = newGiven()
	started := &runnerv1.Started{Id: "a", Pid: int64(self), StartTicks: st.Ticks}
	p.receive(&frames{left: []*runnerv1.SessionResponse{
		{Started: []*runnerv1.Started{started, started}}, {Started: []*runnerv1.Started{started, {Id: "nobody", Pid: int64(self)}}},
	}})
	g := p.attempts["a"]
	if g.handle < 0 {
		t.Fatal("no handle is held")
	}
	if err := syscall.Fstat(g.handle, &syscall.Stat_t{}); err != nil {
		t.Errorf("the handle that is held was closed: %v", err)
	}
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(g.handle))
	if err != nil || link != "anon_inode:[pidfd]" && link[:5] != "pidfd" {
		t.Errorf("the handle is %q, %v", link, err)
	}
	g.letGo()
}
