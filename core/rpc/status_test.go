package rpc

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/errs"
)

// TestP16WhoIsPutOffIsToldWhenToComeAgain, and nobody else is.
func TestP16WhoIsPutOffIsToldWhenToComeAgain(t *testing.T) {
	t.Parallel()
	for kind, want := range map[errs.Kind]bool{errs.Exhausted: true, errs.NotFound: false, errs.Unavailable: false} {
		st, _ := status.FromError(ToStatus(errs.E("start job", kind, "X", nil).WithHint("wait")))
		if kind == errs.Exhausted && st.Code() != codes.ResourceExhausted {
			t.Errorf("code %v", st.Code())
		}
		told := false
		for _, d := range st.Details() {
			if r, ok := d.(*errdetails.RetryInfo); ok && r.GetRetryDelay().AsDuration() == retryDelay {
				told = true
			}
		}
		if told != want {
			t.Errorf("kind %v is told when to come again: %v", kind, told)
		}
		if e := FromStatus("start job", st.Err()); errs.KindOf(e) != kind || errs.ReasonOf(e) != "X" {
			t.Errorf("it came back as %v", e)
		}
	}
}
