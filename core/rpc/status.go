package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Domain is the ErrorInfo domain of every status that drover makes.
const Domain = "drover"

// retryDelay is when somebody who was put off should come again: rounds of the
// scheduler take milliseconds, so by then what waited is done.
const retryDelay = time.Second

// kindCodes is the one table between error kinds and gRPC codes.
func kindCode(k errs.Kind) codes.Code {
	switch k {
	case errs.Invalid:
		return codes.InvalidArgument
	case errs.NotFound:
		return codes.NotFound
	case errs.Exists:
		return codes.AlreadyExists
	case errs.Denied:
		return codes.PermissionDenied
	case errs.Unauthenticated:
		return codes.Unauthenticated
	case errs.Precondition:
		return codes.FailedPrecondition
	case errs.Exhausted:
		return codes.ResourceExhausted
	case errs.Unavailable:
		return codes.Unavailable
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.Canceled:
		return codes.Canceled
	default:
		return codes.Internal
	}
}

func codeKind(c codes.Code) errs.Kind {
	for k := errs.Internal; k <= errs.Canceled; k++ {
		if kindCode(k) == c {
			return k
		}
	}
	return errs.Internal
}

// ToStatus turns an error of the core into a gRPC status error with
// ErrorInfo{reason, domain, hint} and, for a bad field, a BadRequest detail.
// Status errors pass unchanged; nil stays nil. Long texts, which quote what a caller
// sent, are shortened.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(context.Canceled).Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.Error(codes.Internal, job.Shorten(err.Error(), maxText))
	}
	info := &errdetails.ErrorInfo{Reason: e.Reason, Domain: Domain, Metadata: map[string]string{}}
	if e.Hint != "" {
		info.Metadata["hint"] = job.Shorten(e.Hint, maxText)
	}
	st := status.New(kindCode(e.Kind), job.Shorten(err.Error(), maxText))
	if e.Kind == errs.Exhausted { // P16: says when to come again
		return withDetails(st, info, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)})
	}
	if e.Field == "" {
		return withDetails(st, info)
	}
	info.Metadata["field"] = job.Shorten(e.Field, maxText)
	cause := e.Reason
	if e.Err != nil {
		cause = e.Err.Error()
	}
	return withDetails(st, info, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{
			Field: info.GetMetadata()["field"], Description: job.Shorten(cause, maxText), Reason: e.Reason,
		}},
	})
}

// FromStatus turns a gRPC status error back into an error of the core.
func FromStatus(op string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return errs.E(op, errs.Internal, "", err)
	}
	e := errs.E(op, codeKind(st.Code()), "", errors.New(st.Message()))
	if st.Code() == codes.Canceled {
		e.Err = context.Canceled
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			e.Reason = info.GetReason()
			e.Hint = info.GetMetadata()["hint"]
			e.Field = info.GetMetadata()["field"]
		}
	}
	return e
}
