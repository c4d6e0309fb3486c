package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func overloaded(t *testing.T, d time.Duration) error {
	t.Helper()
	st, err := status.New(codes.ResourceExhausted, "too many requests are waiting").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// TestP16ACallComesAgainWhenToldTo, later each time, and not for ever.
func TestP16ACallComesAgainWhenToldTo(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers []error // nil is success; the last one repeats
		calls   int
		least   time.Duration
	}{
		{"at once", []error{nil}, 1, 0},
		{"after a while", []error{overloaded(t, time.Second), overloaded(t, time.Second), nil}, 3, 1500 * time.Millisecond},
		{"never", []error{overloaded(t, time.Second)}, overloadTries + 1, 10 * time.Second},
		{"without a time", []error{status.Error(codes.ResourceExhausted, "full")}, 1, 0},
		{"for another reason", []error{status.Error(codes.NotFound, "no job")}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, calls := time.Now(), 0
				err := comeAgain(t.Context(), "m", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
					calls++
					return c.answers[min(calls, len(c.answers))-1]
				})
				if last := c.answers[len(c.answers)-1]; !errors.Is(err, last) {
					t.Errorf("ended with %v, want %v", err, last)
				}
				if calls != c.calls || time.Since(begin) < c.least {
					t.Errorf("%d calls in %v, want %d in at least %v", calls, time.Since(begin), c.calls, c.least)
				}
			})
		})
	}
}

func TestACallerThatLeavesIsNotKeptWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err := comeAgain(ctx, "m", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			return overloaded(t, 10*time.Second)
		})
		if status.Code(err) != codes.ResourceExhausted || time.Since(begin) != 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}
