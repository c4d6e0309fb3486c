package render

import (
	"strconv"
	"strings"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// WorkerWithJobs is a worker with the attempts that it has and the scheduler has no
// record of.
type WorkerWithJobs struct {
	Worker
	Unrecorded []Unrecorded `json:"unrecorded"`
}

// Unrecorded is an attempt without a record as JSON shows it.
type Unrecorded struct {
	JobID        string     `json:"job_id"`
	Attempt      uint32     `json:"attempt"`
	State        string     `json:"state"`
	Reason       string     `json:"reason"`
	Runner       string     `json:"runner"`
	Path         string     `json:"path"`
	ScriptSHA256 string     `json:"script_sha256"`
	PID          int64      `json:"pid"`
	ExitCode     *int32     `json:"exit_code"` // null: not observed (P6)
	Signal       string     `json:"signal"`
	StartTime    *time.Time `json:"start_time"`
	EndTime      *time.Time `json:"end_time"`
}

// NewWorkerWithJobs makes the view of an answer about a worker.
func NewWorkerWithJobs(answer *droverv1.GetWorkerResponse) WorkerWithJobs {
	v := WorkerWithJobs{NewWorker(answer.GetWorker()), []Unrecorded{}}
	for _, u := range answer.GetUnrecorded() {
		r := u.GetReport()
		v.Unrecorded = append(v.Unrecorded, Unrecorded{
			JobID: r.GetJobId(), Attempt: r.GetAttempt(), State: JobState(r.GetState()), Reason: r.GetReason(), Runner: r.GetRunner(),
			Path: u.GetPath(), ScriptSHA256: r.GetScriptSha256(), PID: r.GetPid(), ExitCode: r.ExitCode, Signal: r.GetSignal(),
			StartTime: timeOf(r.GetStartTime()), EndTime: timeOf(r.GetEndTime()),
		})
	}
	return v
}

// UnrecordedHeader is the header of the table of attempts without a record.
func UnrecordedHeader() []string {
	return []string{"JOB", "ATTEMPT", "STATE", "SINCE", "PID", "COMMAND"}
}

// UnrecordedCells are the rows of that table.
func (w WorkerWithJobs) UnrecordedCells(p *Printer) [][]string {
	rows := make([][]string, len(w.Unrecorded))
	for i, u := range w.Unrecorded {
		since := u.EndTime
		if since == nil {
			since = u.StartTime
		}
		age := "-"
		if since != nil {
			age = Age(p.Now, *since)
		}
		rows[i] = []string{
			ShortID(u.JobID), strconv.Itoa(int(u.Attempt)), p.Palette.Paint(colour(u.State), u.State), age,
			orDash(nonzero(u.PID)), orDash(term.Line(strings.TrimSpace(u.Runner + " " + u.Path))),
		}
	}
	return rows
}
