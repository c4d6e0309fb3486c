package client

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
)

// How often a call is made again that a loaded scheduler has put off, and how
// long it is waited for at the most before each.
const (
	overloadTries = 5
	overloadLimit = 10 * time.Second
)

// comeAgain repeats calls that were answered RESOURCE_EXHAUSTED with a time to
// come again (P16): they had no effect. The wait doubles and is spread, so that
// those who were sent away together do not come back together.
func comeAgain(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for try := 0; ; try++ {
		err := call(ctx, method, req, reply, conn, opts...)
		wait, ok := problem.ComeAgain(err)
		if !ok || try == overloadTries {
			return err
		}
		wait = min(wait<<try, overloadLimit)
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
