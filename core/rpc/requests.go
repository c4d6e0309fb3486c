package rpc

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
)

// Bounds of the calls of one identity.
const (
	callsOfOne = 16384 // open ones, of all kinds; most kinds have their own bounds
	// unreadOfOne is of calls whose request has not been read whole. What is not being
	// read holds the window of its stream at most.
	unreadOfOne = 1024
	// Requests that are being read: each holds the largest message at most. Beyond
	// readsOfAll an identity has one.
	readsOfOne = 8
	readsOfAll = 32
)

// requestLimiter bounds what requests that are on their way hold in memory, of each
// identity and in all. Who sends half of a request and stops holds up its own requests,
// and nobody else's. It may be used concurrently.
type requestLimiter struct {
	mu    sync.Mutex // guards the fields below
	of    map[certs.ID]*requests
	reads int
	freed chan struct{} // closed, and replaced, when a read ends; nil: nobody waits
}

// requests are those of one identity.
type requests struct{ open, unread, reads int }

func newRequestLimiter() *requestLimiter { return &requestLimiter{of: map[certs.ID]*requests{}} }

// begin counts a call until its end.
func (l *requestLimiter) begin(who certs.ID) (*requests, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.of[who]
	if r == nil {
		r = &requests{}
		l.of[who] = r
	}
	if r.open >= callsOfOne || r.unread >= unreadOfOne {
		return nil, errs.E("open the call", errs.Exhausted, "OVERLOADED",
			fmt.Errorf("%s has %d calls open already, and %d whose request has not come whole", who.Name, r.open, r.unread))
	}
	r.open++
	r.unread++
	return r, nil
}

func (l *requestLimiter) end(who certs.ID, r *requests, unread bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if unread {
		r.unread--
	}
	if r.open--; r.open == 0 {
		delete(l.of, who)
	}
}

// await waits until a request may be read.
func (l *requestLimiter) await(ctx context.Context, r *requests) error {
	for {
		l.mu.Lock()
		if r.reads == 0 || r.reads < readsOfOne && l.reads < readsOfAll {
			r.reads++
			l.reads++
			l.mu.Unlock()
			return nil
		}
		if l.freed == nil {
			l.freed = make(chan struct{})
		}
		freed := l.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read ends a read.
func (l *requestLimiter) read(r *requests) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.reads--
	r.unread--
	l.reads--
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// stream is the interceptor. Callers without an identity have limits of their own.
func (l *requestLimiter) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	who, known := auth.FromContext(stream.Context())
	if !known {
		return next(srv, stream)
	}
	r, err := l.begin(who.ID)
	if err != nil {
		return ToStatus(err)
	}
	s := &requestStream{ServerStream: stream, limiter: l, of: r, unread: true}
	if info.IsClientStream { // its messages are far apart; there are few such streams
		l.skip(s)
	}
	defer func() { l.end(who.ID, r, s.unread) }()
	return next(srv, s)
}

// skip counts a stream as one that has nothing to read.
func (l *requestLimiter) skip(s *requestStream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.of.unread--
	s.unread = false
}

// requestStream reads its first message when it may.
type requestStream struct {
	grpc.ServerStream
	limiter *requestLimiter
	of      *requests
	unread  bool // used by the handler alone
}

// RecvMsg implements grpc.ServerStream.
func (s *requestStream) RecvMsg(m any) error {
	if !s.unread {
		return s.ServerStream.RecvMsg(m)
	}
	if err := s.limiter.await(s.Context(), s.of); err != nil {
		return ToStatus(err)
	}
	defer s.limiter.read(s.of)
	s.unread = false
	return s.ServerStream.RecvMsg(m)
}
