package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Connector dials workers for a scheduler: one connection per worker carries
// the session and all reads of output. It may be used concurrently.
type Connector struct {
	source     *certs.Source
	handshakes *Handshakes

	mu     sync.Mutex // guards byID and closed
	byID   map[job.WorkerID]*workerConn
	closed bool
}

// orderBuffer is how much gRPC gathers before it writes to a worker, in bytes.
// Orders are small: output goes the other way. Of ten thousand connections some
// thousand write at the same moment, a ping perhaps, and each takes a whole buffer.
const orderBuffer = 4 << 10

type workerConn struct {
	address string
	conn    *grpc.ClientConn
}

// NewConnector returns a connector that shows the scheduler's certificate and dials
// connections that are watched.
func NewConnector(connections *Connections) *Connector {
	return &Connector{source: connections.source, handshakes: connections.NewHandshakes(), byID: map[job.WorkerID]*workerConn{}}
}

// Close closes every connection.
func (c *Connector) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for id, w := range c.byID {
		_ = w.conn.Close()
		delete(c.byID, id)
	}
	return nil
}

// conn returns the connection to a worker, a new one when its address changed.
// The server must show the worker's own certificate, by name.
func (c *Connector) conn(id job.WorkerID, address, name string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errs.E("dial worker "+name, errs.Unavailable, "SHUTTING_DOWN", nil)
	}
	if w := c.byID[id]; w != nil {
		if w.address == address {
			return w.conn, nil
		}
		_ = w.conn.Close()
		delete(c.byID, id)
	}
	conn, err := c.handshakes.Dial(address, c.source.ClientConfig(certs.RoleWorker, name), grpc.WithWriteBufferSize(orderBuffer),
		grpc.WithInitialWindowSize(requestWindow))
	if err != nil {
		return nil, err
	}
	c.byID[id] = &workerConn{address: address, conn: conn}
	return conn, nil
}

// Connect implements scheduler.Connector.
func (c *Connector) Connect(ctx context.Context, w registry.Worker, term uint64, h job.History) (scheduler.Link, error) {
	conn, err := c.conn(w.ID, w.Address, w.Name)
	if err != nil {
		return nil, err
	}
	// A worker that restarted is there again at once: do not sit out the
	// back-off of earlier failures.
	conn.ResetConnectBackoff()
	ctx, cancel := context.WithCancel(ctx)
	stream, err := droverv1.NewWorkerServiceClient(conn).Session(ctx)
	if err == nil {
		err = stream.Send(&droverv1.SessionRequest{Hello: &droverv1.SessionHello{
			Term: term, WorkerId: w.ID.String(), IndexParts: true, Lives: job.EncodeLives(h.Lives), DecidedTerm: h.Decided,
		}})
	}
	if err != nil {
		cancel()
		return nil, FromStatus("open session with "+w.Name, err)
	}
	other := c.source.ExpectServer()
	if state, ok := tlsState(stream.Context()); !ok || !other.Met(state) {
		cancel()
		return nil, errs.E("open session with "+w.Name, errs.Unavailable, "", errors.New("the connection has no certificate"))
	}
	return &link{stream: stream, cancel: cancel, peer: other, term: term}, nil
}

// tlsState returns the state of TLS below a stream.
func tlsState(ctx context.Context) (tls.ConnectionState, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return tls.ConnectionState{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return info.State, ok
}

// link is one Session stream as the scheduler sees it.
type link struct {
	stream grpc.BidiStreamingClient[droverv1.SessionRequest, droverv1.SessionResponse]
	cancel context.CancelFunc
	index  indexParts  // Recv's own
	peer   *certs.Peer // used by Recv
	term   uint64
}

// Send implements scheduler.Link.
func (l *link) Send(d scheduler.Down) (tooLarge []job.Key, err error) {
	if len(d.Revocations) > 0 {
		if err := l.stream.SendMsg(revocationsFrame(d.Revocations)); err != nil {
			return nil, err
		}
	}
	return sendDown(&d, l.stream.Send)
}

// revocationsField is the list in SessionRequest.
const revocationsField protowire.Number = 6

// revocationsFrame is the SessionRequest with a list of revoked certificates. It does
// not copy the list: thousands of workers may be about to get it.
func revocationsFrame(list []byte) *frame {
	head := protowire.AppendVarint(protowire.AppendTag(nil, revocationsField, protowire.BytesType), uint64(len(list)))
	return &frame{mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(list)}}
}

// sendDown cuts orders into frames. A start that is larger than a message is left out
// and returned: sent, it would break the link, and again after each reconciliation.
func sendDown(d *scheduler.Down, send func(*droverv1.SessionRequest) error) (tooLarge []job.Key, err error) {
	f, size := &droverv1.SessionRequest{}, 0
	// next sends the frame when an item of n bytes has no room in it.
	next := func(n int) error {
		if size += n + itemBytes; size <= frameBytes || size == n+itemBytes {
			return nil
		}
		full := f
		f, size = &droverv1.SessionRequest{}, n+itemBytes
		return send(full)
	}
	for i := range d.Stops {
		p := stopToProto(&d.Stops[i])
		if err := next(proto.Size(p)); err != nil {
			return tooLarge, err
		}
		f.Stops = append(f.Stops, p)
	}
	for _, p := range keysToProto(d.Acks) {
		if err := next(proto.Size(p)); err != nil {
			return tooLarge, err
		}
		f.Acks = append(f.Acks, p)
	}
	for _, p := range keysToProto(d.Forgets) {
		if err := next(proto.Size(p)); err != nil {
			return tooLarge, err
		}
		f.Forgets = append(f.Forgets, p)
	}
	for i := range d.Starts {
		p := startToProto(&d.Starts[i])
		n := proto.Size(p)
		if n+itemBytes > MaxMessage {
			tooLarge = append(tooLarge, d.Starts[i].Key)
			continue
		}
		if err := next(n); err != nil {
			return tooLarge, err
		}
		f.Starts = append(f.Starts, p)
	}
	if size == 0 {
		return tooLarge, nil
	}
	return tooLarge, send(f)
}

// Recv implements scheduler.Link.
func (l *link) Recv() (scheduler.Up, error) {
	f, err := l.stream.Recv()
	if err != nil {
		return scheduler.Up{}, FromStatus("read session", err)
	}
	// P22: a frame may have come before the connection is closed.
	if err := l.peer.Check(time.Now()); err != nil {
		return scheduler.Up{}, errs.E("read session", errs.Unauthenticated, "CERTIFICATE", err)
	}
	if b := f.GetHello().GetStrangeLife(); len(b) > 0 {
		return scheduler.Up{}, refusedBy(b, l.term)
	}
	up, err := upFromProto(f)
	if err == nil {
		up.Scripts, err = l.index.add(f.GetScripts())
	}
	return up, err
}

// maxReports of a frame are taken. A worker sends 512 at once.
const maxReports = 8192

// upFromProto reads a frame but for its scripts, which may be a part of them.
func upFromProto(f *droverv1.SessionResponse) (scheduler.Up, error) {
	if n := len(f.GetReports()); n > maxReports {
		return scheduler.Up{}, errs.Field("read session", "reports", "TOO_MANY", "a frame of the worker has %d reports, at most %d", n, maxReports)
	}
	up := scheduler.Up{Bytes: proto.Size(f)}
	if h := f.GetHello(); h != nil {
		up.Hello = &scheduler.Hello{BootID: h.GetBootId(), InstanceID: h.GetInstanceId(), Complete: h.GetComplete(), Lapses: h.GetLapses()}
	}
	for _, p := range f.GetReports() {
		r, err := reportFromProto(p)
		if err != nil {
			return scheduler.Up{}, err
		}
		up.Reports = append(up.Reports, r)
	}
	var err error
	if up.Forgotten, err = keysFromProto(f.GetForgotten()); err != nil {
		return scheduler.Up{}, err
	}
	if x := f.GetRunners(); x != nil {
		up.Runners = runnersFromProto(x.GetRunners())
	}
	return up, nil
}

// Close implements scheduler.Link.
func (l *link) Close() error {
	l.cancel()
	return nil
}

func keysToProto(ks []job.Key) []*droverv1.ReportAck {
	out := make([]*droverv1.ReportAck, len(ks))
	for i, k := range ks {
		out[i] = &droverv1.ReportAck{JobId: k.Job.String(), Attempt: k.Attempt}
	}
	return out
}

func keysFromProto(ps []*droverv1.ReportAck) ([]job.Key, error) {
	out := make([]job.Key, len(ps))
	for i, p := range ps {
		k, err := keyFromProto(p.GetJobId(), p.GetAttempt())
		if err != nil {
			return nil, err
		}
		out[i] = k
	}
	return out, nil
}

// refusedBy is the refusal of a worker that another life commands.
func refusedBy(life []byte, term uint64) error {
	const op = "open session"
	lives, err := job.DecodeLives(life)
	if err != nil || len(lives) != 1 {
		return errs.Field(op, "strange_life", "SIZE", "%d bytes", len(life))
	}
	return errs.E(op, errs.Precondition, job.ReasonOldRecords, &job.StrangeLifeError{Last: lives[0], Term: term})
}
