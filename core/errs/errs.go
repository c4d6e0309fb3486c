// Package errs holds the one error type of drover: what was being done, what
// kind of failure it is, a stable reason code, and the cause.
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Kind groups errors by what the caller can do about them. core/rpc maps each
// kind to exactly one gRPC status code and back.
type Kind uint8

// The kinds. Internal is the zero value: an error that nobody classified.
const (
	Internal        Kind = iota // a defect or a failing machine
	Invalid                     // the request is wrong; Field names where
	NotFound                    // the thing does not exist
	Exists                      // the thing exists already and differs
	Denied                      // the identity may not do this
	Unauthenticated             // there is no acceptable identity
	Precondition                // the state of the system does not allow this now
	Exhausted                   // a bound is reached; try again later
	Unavailable                 // the other side cannot be reached
	Timeout                     // a deadline passed
	Canceled                    // the caller gave up
)

// String returns the kind in lower case, as it appears in logs.
func (k Kind) String() string {
	names := [...]string{
		"internal", "invalid", "not_found", "exists", "denied", "unauthenticated",
		"precondition", "exhausted", "unavailable", "timeout", "canceled",
	}
	if int(k) >= len(names) {
		return "internal"
	}
	return names[k]
}

// Error is an error with its operation, kind and reason. It is immutable.
type Error struct {
	Op     string // what was being done: "place job"
	Kind   Kind   // what the caller can do about it
	Reason string // stable code in UPPER_SNAKE, such as WORKER_UNKNOWN
	Field  string // request field at fault, with Kind Invalid
	Hint   string // what to do next, one line for people
	Err    error  // cause; may be nil
}

// E makes an Error. The cause may be nil.
func E(op string, kind Kind, reason string, err error) *Error {
	return &Error{Op: op, Kind: kind, Reason: reason, Err: err}
}

// Field makes an Invalid error about one request field.
func Field(op, field, reason, format string, args ...any) *Error {
	return &Error{Op: op, Kind: Invalid, Reason: reason, Field: field, Err: fmt.Errorf(format, args...)}
}

// WithHint returns a copy with a hint for people.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Error returns operation, field and cause in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Field != "" {
		b.WriteString(": " + e.Field)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	} else if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost Error in err's chain, or Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// ReasonOf returns the reason of the outermost Error in err's chain, or "".
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
