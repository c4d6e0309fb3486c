package rpc

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// crowd bounds how many calls of one kind are open at once, in all and of one
// caller, so that one who opens too many does not shut the others out (P16).
type crowd struct {
	what string
	most int
	each int

	mu  sync.Mutex // guards the fields below
	all int
	of  map[certs.ID]int
}

func newCrowd(what string, most, each int) *crowd {
	return &crowd{what: what, most: most, each: each, of: map[certs.ID]int{}}
}

// enter counts a call of who until leave.
func (c *crowd) enter(who certs.ID) (leave func(), err error) {
	each := c.each
	if who.Role == certs.RoleScheduler {
		each = c.most // it comes for all its clients, whom it has counted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	const op, reason = "open the call", "OVERLOADED"
	switch {
	case c.of[who] >= each:
		return nil, errs.E(op, errs.Exhausted, reason, fmt.Errorf("%s has %d %s open already", who.Name, each, c.what))
	case c.all >= c.most:
		return nil, errs.E(op, errs.Exhausted, reason, fmt.Errorf("%d %s are open already", c.most, c.what))
	}
	c.all++
	c.of[who]++
	return func() { c.left(who) }, nil
}

func (c *crowd) left(who certs.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[who]--; c.of[who] == 0 {
		delete(c.of, who)
	}
}

// crowds are the kinds of calls that stay open. A read of output whose reader
// stands still holds what flow lets it; the others some ten KiB.
type crowds struct {
	readers, watchers, waiters, followers, stoppers, listers, backups, healths *crowd
}

func newCrowds() *crowds {
	return &crowds{
		readers:  newCrowd("reads of output", 1024, 512),
		watchers: newCrowd("watches", 1024, 128), // each is told of every change
		waiters:  newCrowd("calls that wait for jobs", 8192, 4096),
		// Each may be in the middle of a message of the largest size.
		followers: newCrowd("streams that wait for jobs", 512, 64),
		stoppers:  newCrowd("stops that wait", 4096, 2048),
		listers:   newCrowd("lists", 64, 8),
		backups:   newCrowd("backups", 4, 2),
		healths:   newCrowd("watches of the health", 256, 16),
	}
}

// streams finds the crowd of a stream; nil: it is not bounded here.
func (c *crowds) streams(method string) *crowd {
	switch method {
	case droverv1.SchedulerService_StreamOutput_FullMethodName, droverv1.WorkerService_StreamOutput_FullMethodName:
		return c.readers
	case droverv1.SchedulerService_WatchEvents_FullMethodName:
		return c.watchers
	case droverv1.SchedulerService_WaitJobs_FullMethodName:
		return c.followers
	case healthv1.Health_Watch_FullMethodName:
		return c.healths
	case droverv1.SchedulerService_Backup_FullMethodName:
		return c.backups
	default:
		return nil
	}
}

// calls finds the crowd of a call that is answered once.
func (c *crowds) calls(method string, req any) *crowd {
	if method == droverv1.SchedulerService_ListJobs_FullMethodName {
		return c.listers
	}
	if w, ok := req.(interface{ GetWait() bool }); !ok || !w.GetWait() {
		return nil
	}
	switch method {
	case droverv1.SchedulerService_StopJob_FullMethodName, droverv1.WorkerService_StopJob_FullMethodName:
		return c.stoppers
	default:
		return c.waiters
	}
}

func (c *crowds) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if of := c.calls(info.FullMethod, req); of != nil {
		who, _ := auth.FromContext(ctx)
		leave, err := of.enter(who.ID)
		if err != nil {
			return nil, ToStatus(err)
		}
		defer leave()
	}
	return next(ctx, req)
}

func (c *crowds) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if of := c.streams(info.FullMethod); of != nil {
		who, _ := auth.FromContext(stream.Context())
		leave, err := of.enter(who.ID)
		if err != nil {
			return ToStatus(err)
		}
		defer leave()
	}
	return next(srv, stream)
}
