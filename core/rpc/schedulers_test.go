package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/standby"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// taking is one of several schedulers: it answers with its name, or stands by.
type taking struct {
	droverv1.UnimplementedSchedulerServiceServer
	t       *testing.T
	name    string
	port    *rpc.Port
	source  *certs.Source
	calls   atomic.Int64
	watched chan struct{} // one value per stream that was opened
	may     atomic.Bool   // false: an active one that has just lost its lease
	refuses atomic.Bool   // no certificate is accepted

	mu   sync.Mutex // guards stop
	stop func()
}

func newTaking(t *testing.T, ca *certs.CA, name string) *taking {
	t.Helper()
	port, err := rpc.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &taking{
		t: t, name: name, port: port, source: walkSource(t, ca, certs.RoleScheduler, name, time.Now(), 0),
		watched: make(chan struct{}, 8), stop: func() {},
	}
	t.Cleanup(func() {
		x.leave()
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// GetWorker tells who answers.
func (x *taking) GetWorker(context.Context, *droverv1.GetWorkerRequest) (*droverv1.GetWorkerResponse, error) {
	x.calls.Add(1)
	return &droverv1.GetWorkerResponse{Worker: &droverv1.Worker{Name: x.name}}, nil
}

// WatchEvents lasts until the client or the server goes.
func (x *taking) WatchEvents(_ *droverv1.WatchEventsRequest, stream grpc.ServerStreamingServer[droverv1.WatchEventsResponse]) error {
	x.watched <- struct{}{}
	<-stream.Context().Done()
	return stream.Context().Err()
}

func (x *taking) serve(server *rpc.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stop = sync.OnceFunc(func() {
		server.Cut()
		cancel()
		if err := <-done; err != nil {
			x.t.Error(err)
		}
	})
}

// leave cuts every connection.
func (x *taking) leave() {
	x.mu.Lock()
	stop := x.stop
	x.mu.Unlock()
	stop()
}

func (x *taking) config(may func() error) rpc.ServerConfig {
	return rpc.ServerConfig{TLS: x.source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: x.source, May: may}
}

func (x *taking) act() {
	x.leave()
	x.may.Store(true)
	server := x.port.Serving(x.config(func() error {
		if x.refuses.Load() {
			return errs.E("connect", errs.Unauthenticated, "CERTIFICATE", errors.New("it was revoked at "+x.name))
		}
		if !x.may.Load() {
			return standby.Refusal("", nil)
		}
		return nil
	}))
	droverv1.RegisterSchedulerServiceServer(server.Registrar(), x)
	x.serve(server)
}

func (x *taking) standBy(active string) {
	x.leave()
	x.serve(x.port.Refusing(x.config(func() error { return standby.Refusal(active, nil) })))
}

// among connects to the active one of several.
func among(t *testing.T, ca *certs.CA, addresses ...string) (droverv1.SchedulerServiceClient, *rpc.Schedulers) {
	t.Helper()
	source := walkSource(t, ca, certs.RoleAdmin, "admin", time.Now(), 0)
	s := rpc.NewSchedulers(rpc.SchedulersConfig{
		Addresses: addresses,
		Dial: func(address string) (*grpc.ClientConn, error) {
			return rpc.Dial(address, source.ClientConfig(certs.RoleScheduler, ""))
		},
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return droverv1.NewSchedulerServiceClient(s), s
}

// ask asks until it is answered and returns who did, and how many calls failed.
func ask(t *testing.T, c droverv1.SchedulerServiceClient) (who string, failed int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ; ; failed++ {
		got, err := c.GetWorker(ctx, &droverv1.GetWorkerRequest{})
		if err == nil {
			return got.GetWorker().GetName(), failed
		}
		if status.Code(err) != codes.Unavailable {
			t.Error(err)
			return "", failed
		}
	}
}

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Of a dead one, one that stands by and one that is active the first call finds
// the last.
func TestTheFirstCallFindsTheActiveScheduler(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a, b := newTaking(t, ca, "a"), newTaking(t, ca, "b")
	a.standBy(b.port.Address())
	b.act()
	c, _ := among(t, ca, nobody(t), a.port.Address(), b.port.Address())
	if who, failed := ask(t, c); who != "b" || failed != 0 {
		t.Errorf("%s answered after %d failures", who, failed)
	}
}

// A call that comes in the middle of a takeover waits for its end.
func TestACallWaitsForATakeover(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a, b := newTaking(t, ca, "a"), newTaking(t, ca, "b")
	a.act()
	b.standBy(a.port.Address())
	c, _ := among(t, ca, a.port.Address(), b.port.Address())
	if who, _ := ask(t, c); who != "a" {
		t.Fatalf("%s answered", who)
	}
	a.standBy("") // cuts what is there, as a kill does
	answers := make(chan string)
	for range 8 {
		go func() {
			who, _ := ask(t, c) // the first try may meet the broken connection
			answers <- who
		}()
	}
	b.act()
	for range 8 {
		if got := <-answers; got != "b" {
			t.Errorf("%s answered", got)
		}
	}
}

// A scheduler that is not active any more has not begun with what it refuses:
// the same call goes to the next one, and the caller sees no error.
func TestARefusedCallGoesToTheNext(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a, b := newTaking(t, ca, "a"), newTaking(t, ca, "b")
	a.act()
	c, _ := among(t, ca, a.port.Address(), b.port.Address())
	if who, _ := ask(t, c); who != "a" {
		t.Fatalf("%s answered", who)
	}
	a.may.Store(false)
	b.act()
	if who, failed := ask(t, c); who != "b" || failed != 0 || a.calls.Load() != 1 {
		t.Errorf("%s answered after %d failures, a was asked %d times", who, failed, a.calls.Load())
	}
}

// One of several schedulers that does not accept a certificate is left as one that is
// away; when no other does either, the error is final and says why, of each.
func TestACertificateThatOneRefusesGoesToTheNext(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a, b := newTaking(t, ca, "a"), newTaking(t, ca, "b")
	a.act()
	c, _ := among(t, ca, a.port.Address(), b.port.Address())
	if who, _ := ask(t, c); who != "a" {
		t.Fatalf("%s answered", who)
	}
	b.act()
	a.refuses.Store(true)
	if _, err := c.GetWorker(t.Context(), &droverv1.GetWorkerRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "revoked at a") {
		t.Errorf("the refused call: %v", err)
	}
	if who, failed := ask(t, c); who != "b" || failed != 0 {
		t.Errorf("%s answered after %d failures", who, failed)
	}
	b.refuses.Store(true)
	_, _ = c.GetWorker(t.Context(), &droverv1.GetWorkerRequest{}) // b is left
	_, err := c.GetWorker(t.Context(), &droverv1.GetWorkerRequest{})
	for _, part := range []string{a.port.Address() + ": ", "revoked at a", b.port.Address() + ": ", "revoked at b"} {
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), part) {
			t.Errorf("%v, want %q", err, part)
		}
	}
	b.leave() // who is away may accept it when it comes back
	if _, err := c.GetWorker(t.Context(), &droverv1.GetWorkerRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "revoked at a") {
		t.Errorf("one refuses, one is away: %v", err)
	}
}

// freezing passes bytes on until it is frozen; then it holds them back and
// closes nothing, as a machine that is gone.
type freezing struct {
	listen net.Listener
	frozen chan struct{}
}

func freezable(t *testing.T, to string) *freezing {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezing{l, make(chan struct{})}
	var wait sync.WaitGroup
	end := make(chan struct{})
	pass := func(from, to net.Conn) {
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			select {
			case <-f.frozen:
				<-end
				return
			default:
			}
			if err != nil {
				_ = to.Close()
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			wait.Go(func() { pass(in, out) })
			wait.Go(func() { pass(out, in) })
			wait.Go(func() {
				<-end
				_ = in.Close()
				_ = out.Close()
			})
		}
	})
	t.Cleanup(func() {
		close(end)
		_ = l.Close()
		wait.Wait()
	})
	return f
}

// A stream to a scheduler that is frozen ends soon after another is active.
func TestAFrozenSchedulerIsLeft(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a, b := newTaking(t, ca, "a"), newTaking(t, ca, "b")
	a.act()
	b.standBy(a.port.Address())
	f := freezable(t, a.port.Address())
	c, _ := among(t, ca, f.listen.Addr().String(), b.port.Address())
	stream, err := c.WatchEvents(t.Context(), &droverv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-a.watched
	close(f.frozen)
	b.act()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "another scheduler is active now") {
		t.Errorf("the stream ended with %v", err)
	}
	if who, failed := ask(t, c); who != "b" || failed != 0 {
		t.Errorf("%s answered after %d failures", who, failed)
	}
}

// Who finds nobody learns why, of each address.
func TestNobodyIsActive(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	a := newTaking(t, ca, "a")
	a.standBy("elsewhere:7420")
	dead := nobody(t)
	c, s := among(t, ca, dead, a.port.Address())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := c.GetWorker(ctx, &droverv1.GetWorkerRequest{})
	for _, part := range []string{dead + ": ", "connection refused", a.port.Address() + ": it stands by; the active one is at elsewhere:7420"} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), part) {
			t.Errorf("%v, want %q", err, part)
		}
	}
	// When none stands by, nothing is waited for.
	c, _ = among(t, ca, dead, nobody(t))
	if _, err := c.GetWorker(t.Context(), &droverv1.GetWorkerRequest{}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	// Closing ends a call that waits.
	done := make(chan error)
	other := droverv1.NewSchedulerServiceClient(s)
	go func() {
		_, err := other.GetWorker(context.Background(), &droverv1.GetWorkerRequest{})
		done <- err
	}()
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("it was answered")
	}
}

func TestSplitAddresses(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"a:1": "[a:1]", "a:1, b:2": "[a:1 b:2]", "[::1]:1,b:2": "[[::1]:1 b:2]",
		"": `"" is not HOST:PORT`, "a:1,": `"" is not HOST:PORT`, "a:1,b": `"b" is not HOST:PORT`,
	} {
		got, err := rpc.SplitAddresses(list)
		if text := fmt.Sprint(got); err == nil && text != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
}
