package problem

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ComeAgain reads when a call that was answered RESOURCE_EXHAUSTED may be made
// again; ok is false when it was not, or nothing was said (P16).
func ComeAgain(err error) (after time.Duration, ok bool) {
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.ResourceExhausted {
		return 0, false
	}
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok && r.GetRetryDelay().AsDuration() > 0 {
			return r.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}
