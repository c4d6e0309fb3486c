package pluginhost

import (
	"io"
	"os"
	"slices"
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

// TestStartsThatAreNotAnsweredAreSentAgain: a plugin drops what it has not begun with
// the session that it came in.
func TestStartsThatAreNotAnsweredAreSentAgain(t *testing.T) {
	t.Parallel()
	p := newHosted(&Host{config: Config{Events: func([]Event) {}}}, Manifest{})
	for _, id := range []string{"begun", "before", "sent", "waiting"} {
		p.start(&runnerv1.Start{Id: id})
	}
	p.pending.Starts = p.pending.GetStarts()[3:] // the others are on their way
	// A process that is dead had begun it, as its journal says.
	p.host.adopter = &adopter{emit: func([]Event) {}, ended: func(string) {}, byFD: map[int32]*orphan{}}
	p.settleOne("before", &runnerv1.Started{Id: "before", Pid: int64(os.Getpid())}, nil, nil)
	p.host.adopter.settling.Wait()
	p.receive(&frames{left: []*runnerv1.SessionResponse{{Started: []*runnerv1.Started{{Id: "begun", Pid: 1}}}}})
	p.askAgain()
	var again []string
	for _, s := range p.pending.GetStarts() {
		again = append(again, s.GetId())
	}
	if !slices.Equal(again, []string{"waiting", "sent"}) {
		t.Errorf("the next session begins with %v", again)
	}
}

// TestAWatcherThatCameTooLateIsNotBelieved: the next process of a plugin is asked to
// watch what a killed one left. When a job has ended by then it saw nothing, but the
// worker, which watches too, did.
func TestAWatcherThatCameTooLateIsNotBelieved(t *testing.T) {
	t.Parallel()
	var told []Event
	p := newHosted(&Host{config: Config{Events: func(e []Event) { told = append(told, e...) }}}, Manifest{})
	p.attempts["a"] = newGiven()
	p.attempts["a"].adopted = true
	p.receive(&frames{left: []*runnerv1.SessionResponse{{Exited: []*runnerv1.Exited{{Id: "a", Pid: 1, Adopted: true}}}}})
	if len(told) != 0 || p.attempts["a"].exited {
		t.Errorf("told %+v", told)
	}
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
