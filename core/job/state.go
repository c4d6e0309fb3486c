package job

import "strconv"

// State is a state of the job state machine (docs/contract.md). It is as
// wide as the protocol's numbers, as the other enumerations here are: what another
// version has made up stays what it is, and never reads as something else (P6).
type State int32

// The states. Zero is "no job".
const (
	None State = iota
	Queued
	Dispatched
	Running
	Stopping
	Succeeded
	Failed
	Stopped
	Rejected
	Lost
)

// Known tells whether this version knows what s means.
func (s State) Known() bool { return s >= None && s <= Lost }

// String returns the state in upper case, as it is printed and stored.
func (s State) String() string {
	names := [...]string{
		"NONE", "QUEUED", "DISPATCHED", "RUNNING", "STOPPING",
		"SUCCEEDED", "FAILED", "STOPPED", "REJECTED", "LOST",
	}
	if !s.Known() {
		return "UNKNOWN(" + strconv.Itoa(int(s)) + ")"
	}
	return names[s]
}

// Terminal tells whether s is one of the five end states.
func (s State) Terminal() bool { return s >= Succeeded && s <= Lost }

// Live tells whether an attempt may have processes in state s.
func (s State) Live() bool { return s == Dispatched || s == Running || s == Stopping }

// CanBecome tells whether the step from s to next is legal without a retry.
// Retries are the job's next attempt and go through Job.Retry.
func (s State) CanBecome(next State) bool {
	switch s {
	case None:
		return next == Queued
	case Queued:
		return next == Dispatched || next == Stopped || next == Rejected
	case Dispatched:
		return next == Running || next == Rejected || next == Stopping || next.Terminal() && next != Stopped
	case Running:
		return next == Stopping || next == Succeeded || next == Failed || next == Lost
	case Stopping:
		return next == Stopped || next == Succeeded || next == Failed || next == Lost
	default:
		return false
	}
}
