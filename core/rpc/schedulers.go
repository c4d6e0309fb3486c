package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/standby"
)

// How the active one of several schedulers is looked for.
const (
	// searchFor bounds the wait for a takeover, which goes on while a scheduler
	// stands by; searchShortest and searchLongest are about the time between two
	// rounds of questions.
	searchFor      = 10 * time.Second
	searchShortest = 50 * time.Millisecond
	searchLongest  = 500 * time.Millisecond
	// searchStagger is by how much the next address is asked later, so that a
	// scheduler that answers at once is the only one that is asked.
	searchStagger = 100 * time.Millisecond
	probeTimeout  = 2 * time.Second
	// lookEvery is about how often the active one must give a sign of life. One
	// that is frozen, or whose machine is gone, closes no connection.
	lookEvery   = 1500 * time.Millisecond
	lookTimeout = time.Second
)

// reasonCertificate is the reason of calls whose certificate was not accepted.
const reasonCertificate = "CERTIFICATE"

// ReasonNoActive is the reason of calls that found no active scheduler.
const ReasonNoActive = "NO_ACTIVE_SCHEDULER"

// SchedulersConfig says which schedulers there are and how to reach them.
type SchedulersConfig struct {
	Addresses []string
	// Dial makes a lazy connection.
	Dial func(address string) (*grpc.ClientConn, error)
	// Why says why an address cannot be reached, in words for people; nil: what
	// the error says.
	Why func(address string, err error) string
}

// Schedulers is a connection to the active one of several schedulers. A call
// that finds none waits a while for a takeover. One that was begun when the
// active one went ends with an error, like that of any connection; the next one
// goes to the new one. It implements grpc.ClientConnInterface and may be used
// concurrently.
type Schedulers struct {
	config SchedulersConfig
	wanted chan struct{} // wakes run: somebody waits for a search, or had no answer
	end    context.CancelFunc
	done   chan struct{} // closed when run has ended

	mu     sync.Mutex // guards the fields below
	first  int        // index of the address to ask first
	active *member    // nil: not known
	search *search    // nil: nobody waits for one
	closed bool
}

// member is the connection to one scheduler.
type member struct {
	index   int
	address string
	conn    *grpc.ClientConn
}

// search is one look for the active scheduler, for all calls that wait for it.
type search struct {
	over  chan struct{} // closed when found or err is set
	found *member
	err   error
	why   error // of the last round; guarded by Schedulers.mu
}

// SplitAddresses takes HOST:PORT,HOST:PORT apart. A mistake is Invalid.
func SplitAddresses(list string) ([]string, error) {
	addresses := strings.Split(list, ",")
	for i, a := range addresses {
		addresses[i] = strings.TrimSpace(a)
		if _, _, err := net.SplitHostPort(addresses[i]); err != nil {
			return nil, errs.E("connect to the scheduler", errs.Invalid, "ADDRESS", fmt.Errorf("%q is not HOST:PORT", addresses[i]))
		}
	}
	return addresses, nil
}

// Conn is a connection that can be closed.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// DialScheduler makes a lazy connection to a scheduler, or to the active one of
// several whose addresses are separated by commas. h may be that of Connections.
func (h *Handshakes) DialScheduler(list string, tlsConfig *tls.Config) (Conn, error) {
	addresses, err := SplitAddresses(list)
	if err != nil {
		return nil, err
	}
	if len(addresses) == 1 {
		return h.Dial(addresses[0], tlsConfig)
	}
	return NewSchedulers(SchedulersConfig{
		Addresses: addresses, Dial: func(address string) (*grpc.ClientConn, error) { return h.Dial(address, tlsConfig) },
	}), nil
}

// NewSchedulers returns a connection that is made by the first call. Close it.
func NewSchedulers(c SchedulersConfig) *Schedulers {
	if c.Why == nil {
		c.Why = func(_ string, err error) string { return status.Convert(err).Message() }
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Schedulers{config: c, wanted: make(chan struct{}, 1), end: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.run(ctx)
	}()
	return s
}

// Close ends every call.
func (s *Schedulers) Close() error {
	s.mu.Lock()
	s.closed = true
	m := s.active
	s.active = nil
	s.mu.Unlock()
	s.end()
	<-s.done
	m.close()
	return nil
}

func (m *member) close() {
	if m != nil {
		_ = m.conn.Close() // fails when it is closed already
	}
}

// Invoke implements grpc.ClientConnInterface.
func (s *Schedulers) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return s.call(ctx, func(m *member) error { return m.conn.Invoke(ctx, method, args, reply, opts...) })
}

// NewStream implements grpc.ClientConnInterface.
func (s *Schedulers) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (stream grpc.ClientStream, err error) {
	err = s.call(ctx, func(m *member) error {
		inner, err := m.conn.NewStream(ctx, d, method, opts...)
		if err == nil {
			stream = &activeStream{inner, func(err error) error { return s.judge(ctx, m, err) }}
		}
		return err
	})
	return stream, err
}

// activeStream tells how a stream ended.
type activeStream struct {
	grpc.ClientStream
	ended func(error) error
}

// RecvMsg implements grpc.ClientStream.
func (a *activeStream) RecvMsg(m any) error {
	err := a.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return a.ended(err)
}

// call calls the active scheduler. One that has become a standby has not begun
// with it, so another is asked.
func (s *Schedulers) call(ctx context.Context, f func(*member) error) error {
	for range len(s.config.Addresses) {
		m, err := s.find(ctx)
		if err != nil {
			return err
		}
		if err = s.judge(ctx, m, f(m)); reasonOf(err) != standby.ReasonStandby {
			return err
		}
	}
	return ToStatus(errs.E("find the active scheduler", errs.Unavailable, ReasonNoActive, errors.New("it changes all the time")))
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	var e *errs.Error
	if errors.As(FromStatus("", err), &e) {
		return e.Reason
	}
	return ""
}

func refusesCertificate(err error) bool {
	return status.Code(err) == codes.Unauthenticated && reasonOf(err) == reasonCertificate
}

// judge looks at how a call ended and leaves a scheduler that cannot be talked
// to any more.
func (s *Schedulers) judge(ctx context.Context, m *member, err error) error {
	if err == nil || ctx.Err() != nil && status.Code(err) == codes.Canceled {
		return err
	}
	reason := reasonOf(err)
	switch {
	case status.Code(err) == codes.Canceled && reason == "": // by move, which closes what is left
		return status.Error(codes.Unavailable, "another scheduler is active now than the one at "+m.address)
	case refusesCertificate(err):
		// Another one may accept it; if none does, the search says why.
		s.move(m, nil)
		return status.Error(codes.Unavailable, status.Convert(err).Message())
	case status.Code(err) == codes.DeadlineExceeded:
		s.wake() // it may be frozen
	case status.Code(err) == codes.Unavailable && (reason == "" || reason == standby.ReasonStandby || reason == "SHUTTING_DOWN"):
		s.move(m, nil)
	}
	return err
}

// move goes on from one member to another; to is nil when it is to be found.
func (s *Schedulers) move(from, to *member) {
	s.mu.Lock()
	if s.active != from || s.closed {
		s.mu.Unlock()
		to.close()
		return
	}
	s.active = to
	if to != nil {
		s.first = to.index
	}
	s.mu.Unlock()
	from.close()
}

func (s *Schedulers) wake() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// find returns the active scheduler's connection, and waits for a search if that
// is not known.
func (s *Schedulers) find(ctx context.Context) (*member, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed()
	}
	if m := s.active; m != nil {
		s.mu.Unlock()
		return m, nil
	}
	if s.search == nil {
		s.search = &search{over: make(chan struct{})}
	}
	q := s.search
	s.mu.Unlock()
	s.wake()
	select {
	case <-q.over:
		return q.found, q.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.why != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, q.why
	}
	return nil, status.FromContextError(ctx.Err()).Err()
}

// run searches when somebody waits and looks after the active one otherwise.
func (s *Schedulers) run(ctx context.Context) {
	timer := time.NewTimer(spread(lookEvery))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-s.wanted:
		case <-timer.C:
		}
		s.mu.Lock()
		q, m := s.search, s.active
		s.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			if q != nil {
				s.conclude(q, nil, errClosed())
			}
			return // nobody begins a search any more
		case q != nil:
			found, err := s.seek(ctx, q)
			s.conclude(q, found, err)
		case m != nil:
			s.look(ctx, m)
		}
		timer.Reset(spread(lookEvery))
	}
}

func errClosed() error {
	return status.Error(codes.Canceled, "the connection to the schedulers is closed")
}

// conclude answers those who wait for a search.
func (s *Schedulers) conclude(q *search, found *member, err error) {
	s.mu.Lock()
	if s.closed {
		defer found.close()
		found, err = nil, errClosed()
	}
	q.found, q.err, s.search = found, err, nil
	if found != nil {
		s.active, s.first = found, found.index
	}
	close(q.over)
	s.mu.Unlock()
}

// spread is about d, another time for each caller.
func spread(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// look makes sure that the active scheduler lives, and moves on when it gives no
// sign of that while another is active.
func (s *Schedulers) look(ctx context.Context, m *member) {
	if check(ctx, m.conn, lookTimeout) == nil {
		return
	}
	others, err := s.dial(m.index)
	if err != nil {
		return
	}
	found, _, _ := s.round(ctx, others)
	closeBut(others, found)
	if found != nil {
		s.move(m, found)
	}
}

// seek asks all schedulers, for as long as one of them stands by: then there
// soon is an active one.
func (s *Schedulers) seek(ctx context.Context, q *search) (*member, error) {
	all, err := s.dial(-1)
	if err != nil {
		return nil, ToStatus(err)
	}
	began := time.Now()
	for wait := searchShortest; ; wait = min(2*wait, searchLongest) {
		found, standing, why := s.round(ctx, all)
		if found != nil {
			closeBut(all, found)
			return found, nil
		}
		s.mu.Lock()
		q.why = why
		s.mu.Unlock()
		if !standing || time.Since(began) > searchFor || !rest(ctx, spread(wait)) {
			closeBut(all, nil)
			return nil, why
		}
		for _, m := range all {
			m.conn.ResetConnectBackoff()
		}
	}
}

// dial makes connections to all schedulers but one, the last active one first.
func (s *Schedulers) dial(but int) ([]*member, error) {
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	var out []*member
	for i := range s.config.Addresses {
		at := (first + i) % len(s.config.Addresses)
		if at == but {
			continue
		}
		address := s.config.Addresses[at]
		conn, err := s.config.Dial(address)
		if err != nil {
			closeBut(out, nil)
			return nil, err
		}
		out = append(out, &member{at, address, conn})
	}
	return out, nil
}

func closeBut(all []*member, keep *member) {
	for _, m := range all {
		if m != keep {
			m.close()
		}
	}
}

// round asks each member whether it is active, one a little later than the
// other, until one is. standing tells that one stands by.
func (s *Schedulers) round(ctx context.Context, all []*member) (found *member, standing bool, why error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wait sync.WaitGroup
		mu   sync.Mutex // guards found and answers
	)
	answers := make([]error, len(all))
	for i, m := range all {
		wait.Go(func() {
			if i > 0 && !rest(ctx, time.Duration(i)*searchStagger) {
				return
			}
			err := check(ctx, m.conn, probeTimeout)
			mu.Lock()
			defer mu.Unlock()
			answers[i] = err
			if err == nil && found == nil {
				found = m
				cancel()
			}
		})
	}
	wait.Wait()
	if found != nil {
		return found, false, nil
	}
	standing, why = s.verdict(all, answers)
	return nil, standing, why
}

// verdict says why none of the members is active. When each refuses the certificate,
// another try mends it as little as with a single one.
func (s *Schedulers) verdict(all []*member, answers []error) (standing bool, why error) {
	parts := make([]string, 0, len(all))
	kind := errs.Unauthenticated
	for i, err := range answers {
		if !refusesCertificate(err) {
			kind = errs.Unavailable
		}
		switch {
		case err == nil: // not asked any more
		case reasonOf(err) == standby.ReasonStandby:
			standing = true
			parts = append(parts, all[i].address+": "+strings.TrimPrefix(status.Convert(err).Message(), "ask the scheduler: "))
		default:
			parts = append(parts, all[i].address+": "+s.config.Why(all[i].address, err))
		}
	}
	return standing, ToStatus(errs.E("cannot reach the active scheduler", kind, ReasonNoActive,
		errors.New(strings.Join(parts, "; "))).WithHint(`are they up? "drover context ls" shows which addresses are in use`))
}

// check is nil when the scheduler is active.
func check(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	got, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err == nil && got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		err = status.Error(codes.Unavailable, "it is shutting down")
	}
	return err
}

// rest waits, or returns false when ctx ends first.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
