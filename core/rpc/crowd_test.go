package rpc

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// opened is a stream of a caller.
type opened struct {
	grpc.ServerStream
	who certs.ID
}

func (o opened) Context() context.Context {
	return auth.NewContext(context.Background(), auth.Identity{ID: o.who, Serial: "1"})
}

// TestP16StreamsAreBounded: in all and of one caller; who is put off hears when to
// come again, and there is room when somebody leaves.
func TestP16StreamsAreBounded(t *testing.T) {
	t.Parallel()
	c := newCrowds()
	c.readers = newCrowd("reads of output", 5, 3)
	held, release := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	open := func(who certs.ID, next grpc.StreamHandler) error {
		info := &grpc.StreamServerInfo{FullMethod: droverv1.SchedulerService_StreamOutput_FullMethodName}
		return c.stream(nil, opened{who: who}, info, next)
	}
	hold := func(who certs.ID) {
		running.Go(func() {
			if err := open(who, func(any, grpc.ServerStream) error { held <- struct{}{}; <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		<-held
	}
	putOff := func(who certs.ID) {
		t.Helper()
		err := open(who, func(any, grpc.ServerStream) error { t.Error("it was let in"); return nil })
		st := status.Convert(err)
		again := false
		for _, d := range st.Details() {
			r, ok := d.(*errdetails.RetryInfo)
			again = again || ok && r.GetRetryDelay().AsDuration() > 0
		}
		if st.Code() != codes.ResourceExhausted || !again {
			t.Errorf("put off with %v", err)
		}
	}
	ann, bob, eve := certs.ID{Role: certs.RoleOperator, Name: "ann"}, certs.ID{Role: certs.RoleViewer, Name: "bob"}, certs.ID{Role: certs.RoleViewer, Name: "eve"}
	for range 3 {
		hold(ann)
	}
	putOff(ann)
	hold(bob)
	hold(bob)
	putOff(bob)
	putOff(eve)
	putOff(certs.ID{Role: certs.RoleScheduler, Name: "s"})
	close(release)
	running.Wait()
	if n := c.count(); n != 0 || len(c.readers.of) != 0 {
		t.Errorf("%d are counted when all have left: %v", n, c.readers.of)
	}
	scheduler := certs.ID{Role: certs.RoleScheduler, Name: "s"}
	for range 5 { // all of them: it comes for its clients
		_, err := c.readers.enter(scheduler)
		if err != nil {
			t.Error(err)
		}
	}
}

func (c *crowds) count() int {
	c.readers.mu.Lock()
	defer c.readers.mu.Unlock()
	return c.readers.all
}

// TestP16CallsThatWaitAreBoundedAndStopsOnTheirOwn: only those that wait count, and a
// crowd of waiters leaves the stops alone.
func TestP16CallsThatWaitAreBoundedAndStopsOnTheirOwn(t *testing.T) {
	t.Parallel()
	c := newCrowds()
	c.waiters = newCrowd("calls that wait for jobs", 0, 0)
	call := func(method string, req any) codes.Code {
		_, err := c.unary(opened{}.Context(), req, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, nil })
		return status.Code(err)
	}
	for _, x := range []struct {
		method string
		req    any
		want   codes.Code
	}{
		{droverv1.SchedulerService_GetJob_FullMethodName, &droverv1.GetJobRequest{Wait: true}, codes.ResourceExhausted},
		{droverv1.SchedulerService_GetJob_FullMethodName, &droverv1.GetJobRequest{}, codes.OK},
		{droverv1.SchedulerService_StopJob_FullMethodName, &droverv1.StopJobRequest{Wait: true}, codes.OK},
		{droverv1.SchedulerService_Heartbeat_FullMethodName, &droverv1.HeartbeatRequest{}, codes.OK},
	} {
		if got := call(x.method, x.req); got != x.want {
			t.Errorf("%s: %v, want %v", x.method, got, x.want)
		}
	}
}
