package main

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// terminal tells whether a job has ended.
func terminal(s droverv1.JobState) bool {
	return s >= droverv1.JobState_JOB_STATE_SUCCEEDED && s <= droverv1.JobState_JOB_STATE_LOST
}

// jobCode is the exit code of verbs that stand for a job: its own code, 128+n
// for a signal, or what drover says about it.
func jobCode(j *droverv1.Job) problem.Code {
	switch reason := j.GetReason(); {
	case reason == job.ReasonTimeout || reason == job.ReasonIdleTimeout:
		return problem.TimedOut
	case j.GetState() == droverv1.JobState_JOB_STATE_REJECTED || reason == job.ReasonSpawn:
		return refusalCode(reason, j.GetMessage())
	case j.ExitCode != nil:
		return exitStatus(j.GetExitCode())
	case j.GetSignal() != "":
		return problem.Signalled + problem.Code(signalNumber(j.GetSignal()))
	default:
		return problem.DroverFailed // P6: no evidence, no code
	}
}

// exitStatus is the code as a process can end with it: one that has no room in a
// byte, which a runner of another kind may tell, must not become 0.
func exitStatus(code int32) problem.Code {
	if code < 0 || code > 255 {
		return 255
	}
	return problem.Code(code)
}

// signalNumber reads SIGTERM, or RTMIN+n as the kernel numbers them.
func signalNumber(name string) int {
	if n := unix.SignalNum(name); n != 0 {
		return int(n)
	}
	var n int
	for _, format := range []string{"SIG%d", "SIGRTMIN+%d", "signal %d"} {
		if _, err := fmt.Sscanf(name, format, &n); err == nil {
			if format == "SIGRTMIN+%d" {
				n += 34
			}
			return n
		}
	}
	return int(unix.SIGKILL)
}

// refusalCode is the exit code of a job that never ran.
func refusalCode(reason, message string) problem.Code {
	switch reason {
	case job.ReasonPolicy, job.ReasonPath, "ENV_REFUSED":
		return problem.Refused
	case job.ReasonScriptGone, job.ReasonNoScript, job.ReasonNoRunner, "COMMAND_UNKNOWN":
		return problem.NoCommand
	case job.ReasonSpawn:
		if strings.Contains(message, "NOT_FOUND") {
			return problem.NoCommand
		}
		if strings.Contains(message, "NOT_EXECUTABLE") {
			return problem.Refused
		}
	}
	return problem.DroverFailed
}

// aroundJob gives an error the exit code that run, exec, attach and wait use
// for everything that is not the job's own: 125, 126 or 127. Mistakes on the
// command line keep theirs.
func aroundJob(err error) error {
	if err == nil || problem.HasCode(err) || errs.ReasonOf(err) == "USAGE" {
		return err
	}
	return problem.WithCode(err, refusalCode(errs.ReasonOf(err), err.Error()))
}

// verdict turns the end of a job into an exit code, with a message when the
// code alone does not say what happened.
func verdict(j *droverv1.Job) error {
	code := jobCode(j)
	if code == problem.Done {
		return nil
	}
	switch {
	case j.GetReason() == job.ReasonExitCode || j.GetState() == droverv1.JobState_JOB_STATE_STOPPED:
		return code
	case j.GetReason() == job.ReasonSignal:
		return code
	}
	message := j.GetMessage()
	if message == "" {
		message = j.GetReason()
	}
	what := fmt.Sprintf("job %s %s", render.ShortID(j.GetJobId()), verbOf(j.GetState()))
	return problem.WithCode(errs.E(what, errs.Internal, j.GetReason(), errors.New(message)).
		WithHint("see \"drover why %s\"", render.ShortID(j.GetJobId())), code)
}

// verbOf is a terminal state in a sentence.
func verbOf(s droverv1.JobState) string {
	switch s {
	case droverv1.JobState_JOB_STATE_REJECTED:
		return "was rejected"
	case droverv1.JobState_JOB_STATE_LOST:
		return "was lost"
	case droverv1.JobState_JOB_STATE_STOPPED:
		return "was stopped"
	case droverv1.JobState_JOB_STATE_SUCCEEDED:
		return "succeeded"
	case droverv1.JobState_JOB_STATE_FAILED:
		return "failed"
	default: // of a newer scheduler
		return "ended as " + render.JobState(s)
	}
}
