package main

import (
	"fmt"

	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// hintFor says what one can do about the state of a job: first what its worker
// needs, then what its reason asks for, then what its state allows.
func hintFor(j *droverv1.Job) string {
	id, worker := render.ShortID(j.GetJobId()), orWorker(j.GetWorkerName())
	switch {
	case !j.GetReachable() && !terminal(j.GetState()) && j.GetWorkerId() != "":
		return fmt.Sprintf("start the worker %s again; if it is gone for good: drover workers rm %s", worker, worker)
	case j.GetState() == droverv1.JobState_JOB_STATE_SUCCEEDED:
		return "drover logs " + id
	case j.GetReason() != "":
		if text := advice(j.GetReason(), id, worker); text != "" {
			return text
		}
	}
	return stateAdvice(j.GetState(), id, worker)
}

// advice is what to do about a reason; "" for one that this drover does not know: a
// newer scheduler or worker may have it. A test walks all reasons of the code.
func advice(reason, id, worker string) string {
	if text := waitAdvice(reason, id, worker); text != "" {
		return text
	}
	switch reason {
	case job.ReasonExitCode, job.ReasonSignal:
		return fmt.Sprintf("drover logs %s shows what it said; drover rerun %s runs it again", id, id)
	case job.ReasonTimeout, job.ReasonIdleTimeout:
		return fmt.Sprintf("drover logs %s shows how far it came; run it with a longer time, or drover rerun %s", id, id)
	case job.ReasonOOM:
		return "run it with more --memory"
	case job.ReasonSpawn:
		return fmt.Sprintf(`install what is missing on the worker %s, or choose another worker or --command`, worker)
	case job.ReasonOutputLimit:
		return "run it with a larger --output-limit, or --output-policy ring"
	case job.ReasonUser:
		return fmt.Sprintf("somebody asked for the stop; drover rerun %s runs it again", id)
	case job.ReasonDrain:
		return fmt.Sprintf("its worker was drained; drover rerun %s runs it elsewhere", id)
	case job.ReasonScriptGone:
		return `"drover scripts" shows what is published`
	case job.ReasonPolicy, job.ReasonPath:
		return `the worker's owner decides this in its policy file; see "drover workers show"`
	case job.ReasonLimit:
		return "this host cannot hold that limit; leave it out or choose another worker"
	case job.ReasonRunnerFailed, "SHUTTING_DOWN":
		return fmt.Sprintf(`"drover plugin ls" shows what is wrong with the runner; then drover rerun %s`, id)
	case job.ReasonTooLarge:
		return "it was accepted by an older version, which had no bounds; run it again with less input, or fewer arguments or exit codes"
	case job.ReasonInputGone:
		return "what was sent with the request is lost; run it again with its input"
	case "BAD_REQUEST", "WORKDIR":
		return "the message names the field; run it again with another value"
	case "RESOURCES", "OUTPUT", "CGROUP":
		return fmt.Sprintf(`the host could not give what every job needs; see "drover workers show %s" and the worker's log`, worker)
	case job.ReasonOldWorker:
		return fmt.Sprintf("upgrade drover on the worker %s, or choose another worker", worker)
	case job.ReasonOldScheduler:
		return "upgrade the scheduler; the worker tells it again then, and nothing is lost"
	case job.ReasonGivenUp:
		return "the job went on although it had been taken for lost, and was stopped when its worker was back"
	case job.ReasonPartition:
		return fmt.Sprintf("it was to stop when its worker is cut off; drover rerun %s, or --retries 1 --retry-on lost next time", id)
	case job.ReasonReboot, job.ReasonNoProcess:
		return fmt.Sprintf("nobody saw how it ended; drover logs %s shows what it wrote, drover rerun %s runs it again", id, id)
	case job.ReasonOldRecords:
		return "the scheduler runs on an older copy of its records: put the newer ones in use (docs/operations.md, Backup)"
	case job.ReasonFenced:
		return "a newer scheduler commands this worker; stop the older one, and run the job there"
	case job.ReasonTombstone:
		return fmt.Sprintf("its stop came first and nothing ran; drover rerun %s runs it", id)
	case "UNKILLABLE":
		return fmt.Sprintf("the kernel does not let go of its processes; look at them on %s, or restart that host", worker)
	}
	return ""
}

// waitAdvice is advice for reasons of jobs that wait, or waited in vain.
func waitAdvice(reason, id, worker string) string {
	switch reason {
	case job.ReasonNoWorker:
		return `start a worker, or see "drover workers"`
	case job.ReasonConnecting:
		return `wait a moment; "drover workers" shows what it offers once it has told`
	case job.ReasonNoSlot:
		return `wait, stop something ("drover ps"), or add a worker`
	case job.ReasonDiskFull:
		return `make room on that worker's disk ("drover workers show" says how much is left), or add a worker`
	case job.ReasonQuota:
		return `its output waits for room: drover jobs rm frees the output of jobs that have ended`
	case job.ReasonNoLabels:
		return `"drover workers" shows the labels that there are`
	case job.ReasonNoRunner, "COMMAND_UNKNOWN":
		return `"drover plugin ls" shows what runs where; a policy file can allow more`
	case job.ReasonNoUploads:
		return `set "uploads: true" in the policy file of a worker, or publish the script in a script folder`
	case job.ReasonNoScript:
		return `"drover scripts" shows what is published`
	case job.ReasonWorkerOffline:
		return fmt.Sprintf("start that worker again, or stop the job (drover stop %s) and run it without --worker", id)
	case job.ReasonWorkerDrained:
		return "drover workers undrain " + worker
	case job.ReasonWorkerGone:
		return fmt.Sprintf("its worker was removed; drover logs may be gone with it, drover rerun %s runs it again", id)
	case job.ReasonQueueTimeout:
		return fmt.Sprintf("drover rerun %s, or run it with a longer --queue-timeout", id)
	case "RETRY":
		return fmt.Sprintf("wait: the next attempt comes by itself; drover stop %s gives it up", id)
	}
	return ""
}

// stateAdvice is what a state allows, whatever its reason.
func stateAdvice(s droverv1.JobState, id, worker string) string {
	switch s {
	case droverv1.JobState_JOB_STATE_QUEUED:
		return `wait for a worker; "drover workers" shows those that there are`
	case droverv1.JobState_JOB_STATE_DISPATCHED:
		return fmt.Sprintf(`wait for the worker to start it; if that lasts: "drover workers show %s"`, worker)
	case droverv1.JobState_JOB_STATE_RUNNING:
		return "drover logs -f " + id
	case droverv1.JobState_JOB_STATE_STOPPING:
		return fmt.Sprintf("wait for its grace, or end it at once: drover stop --grace 0s %s", id)
	default:
		return fmt.Sprintf("drover status %s tells all about it; drover rerun %s runs it again", id, id)
	}
}

func orWorker(name string) string {
	if name == "" {
		return "WORKER"
	}
	return name
}
