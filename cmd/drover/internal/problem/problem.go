// Package problem says what went wrong in at most three short lines and an
// exit code: what was tried, why not, what to do.
package problem

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Code is an exit code. As an error it ends the program without a message:
// what there was to say has been said.
type Code int

// Exit codes of every verb, and those that only verbs with a job's own code use.
const (
	Done        Code = 0
	Failed      Code = 1
	Usage       Code = 2
	NotFound    Code = 3
	Denied      Code = 4
	Unreachable Code = 5

	TimedOut     Code = 124 // the job ran into its time limit
	DroverFailed Code = 125 // drover's own failure before or around the job
	Refused      Code = 126 // rejected by policy
	NoCommand    Code = 127 // no such script or command
	Signalled    Code = 128 // plus the number of the signal
)

// Error implements error.
func (c Code) Error() string { return fmt.Sprintf("exit %d", int(c)) }

// coded is an error with an exit code of its own.
type coded struct {
	error
	code Code
}

// Unwrap returns the error without its code.
func (c coded) Unwrap() error { return c.error }

// WithCode returns err with an exit code that differs from that of its kind.
func WithCode(err error, code Code) error {
	if err == nil {
		return nil
	}
	return coded{err, code}
}

// HasCode tells whether an error has an exit code that is not that of its kind.
func HasCode(err error) bool {
	var c coded
	var code Code
	return errors.As(err, &c) || errors.As(err, &code)
}

// CodeOf returns the exit code of an error. Only nil is Done.
func CodeOf(err error) Code {
	var code Code
	var c coded
	switch {
	case err == nil:
		return Done
	case errors.As(err, &c):
		return c.code
	case errors.As(err, &code):
		return code
	}
	switch errs.KindOf(err) {
	case errs.Invalid:
		return Usage
	case errs.NotFound:
		return NotFound
	case errs.Denied, errs.Unauthenticated:
		return Denied
	case errs.Unavailable, errs.Timeout:
		return Unreachable
	default:
		return Failed
	}
}

// Print writes an error for people. A Code is silent.
func Print(w io.Writer, err error) {
	var code Code
	if err == nil || errors.As(err, &code) {
		return
	}
	fmt.Fprintf(w, "drover: %s\n", oneLine(err.Error()))
	var e *errs.Error
	if errors.As(err, &e) && e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", oneLine(e.Hint))
	}
}

// oneLine joins lines and escapes what a server or a file may have put into a
// message to steer the terminal.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return term.Line(strings.Join(parts, "; "))
}

// UsageError is a mistake on the command line.
func UsageError(verb, format string, args ...any) *errs.Error {
	return errs.E(verb, errs.Invalid, "USAGE", fmt.Errorf(format, args...)).WithHint(`see "drover %s --help"`, verb)
}

// domain is the ErrorInfo domain of drover's own statuses.
const domain = "drover"

// FromStatus turns a gRPC status into an error of the core. A status that
// drover made says itself what was tried; others get op in front.
func FromStatus(op string, err error) error {
	st, ok := Status(err)
	if !ok {
		return err
	}
	e := errs.E(op, kind(st.Code()), "", errors.New(st.Message()))
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != domain {
			continue
		}
		e.Reason, e.Hint = info.GetReason(), info.GetMetadata()["hint"]
		if before, after, found := strings.Cut(st.Message(), ": "); found {
			e.Op, e.Err = before, errors.New(after)
		}
	}
	return e
}

// FromRefusal turns the refusal of one of several jobs into an error of the core.
func FromRefusal(r *droverv1.StartJobsError) *errs.Error {
	op, why, _ := strings.Cut(r.GetMessage(), ": ")
	return &errs.Error{
		Op: op, Kind: kind(codes.Code(r.GetCode())), Reason: r.GetReason(), Hint: r.GetHint(), Err: errors.New(why),
	}
}

// Status finds the gRPC status in an error. Unlike status.FromError it leaves
// the status's message as it is when the error is wrapped.
func Status(err error) (*status.Status, bool) {
	var g interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &g) {
		return nil, false
	}
	return g.GRPCStatus(), true
}

// Reported tells whether a status was made by drover itself rather than by the
// connection.
func Reported(err error) bool {
	st, ok := Status(err)
	if !ok {
		return false
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return true
		}
	}
	return false
}

func kind(c codes.Code) errs.Kind {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange:
		return errs.Invalid
	case codes.NotFound:
		return errs.NotFound
	case codes.AlreadyExists:
		return errs.Exists
	case codes.PermissionDenied:
		return errs.Denied
	case codes.Unauthenticated:
		return errs.Unauthenticated
	case codes.FailedPrecondition, codes.Aborted:
		return errs.Precondition
	case codes.ResourceExhausted:
		return errs.Exhausted
	case codes.Unavailable:
		return errs.Unavailable
	case codes.DeadlineExceeded:
		return errs.Timeout
	case codes.Canceled:
		return errs.Canceled
	default:
		return errs.Internal
	}
}
