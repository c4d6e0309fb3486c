package render

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/term"
)

// Details tells all about one job, for people.
func (j Job) Details(p *Printer) []Field {
	state := p.Palette.Paint(colour(j.Shown()), j.Shown())
	if j.Reason != "" {
		state += " (" + term.Line(j.Reason) + ")"
	}
	fields := []Field{
		{"Job", j.JobID},
		{"Name", term.Line(j.Name)},
		{"State", state},
		{"Message", term.Line(j.Message)},
		{"What", j.What()},
		{"Worker", named(j.WorkerName, j.WorkerID)},
		{"Unreachable since", stamp(j.UnreachableSince)},
		{"Attempt", nonzero(int64(j.Attempt))},
		{"Attempts", j.tries()},
		{"Runner", strings.TrimSpace(term.Line(j.Runner + " " + j.RunnerVersion))},
		{"Script sha256", term.Line(j.ScriptSHA256)},
		{"Pid", nonzero(j.PID)},
		{"Exit", j.Result()},
		{"Evidence", j.Evidence},
		{"Submitted", byWhom(stamp(j.SubmitTime), j.RequestedBy)},
		{"Started", stamp(j.StartTime)},
		{"Ended", stamp(j.EndTime)},
		{"Took", j.Took(p.Now)},
		{"Stdout", j.Stdout.String()},
		{"Stderr", j.Stderr.String()},
		{"Stopped", j.StopProof.String()},
		{"Labels", Labels(j.Labels)},
	}
	return append(fields, j.Spec.fields()...)
}

// tries tells in one line what became of each attempt, when there was more than one.
func (j Job) tries() string {
	if len(j.Attempts) < 2 {
		return ""
	}
	var all []string
	for _, a := range j.Attempts {
		text := fmt.Sprintf("%d %s on %s", a.Attempt, a.State, term.Line(a.WorkerName))
		if end := a.Result(); end != "" {
			text += " (" + term.Line(end) + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

func named(name, id string) string {
	if id == "" {
		return ""
	}
	return fmt.Sprintf("%s (%s)", term.Line(name), id)
}

func byWhom(when, who string) string {
	if when == "" || who == "" {
		return when
	}
	return when + " by " + term.Line(who)
}

func nonzero(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// String is the size and, when it is known, the checksum of a stream.
func (s Stream) String() string {
	text := Size(s.Size)
	if s.Size >= 1024 {
		text += fmt.Sprintf(" (%d bytes)", s.Size)
	}
	if s.SHA256 != "" {
		text += ", sha256 " + term.Line(s.SHA256)
	}
	return text
}

// walked is the method of a stop on a host without cgroups.
const walked = "process-walk"

// String says what a stop took: "3 processes ended by TERM, 1 by KILL, in
// 0.21s". Processes that got TERM and had to be killed count as killed only. Without
// cgroups a process can hide from a stop, and the answer says so.
func (p *StopProof) String() string {
	if p == nil {
		return ""
	}
	ended := max(int(p.Termed)-int(p.Killed), 0)
	took := strconv.FormatFloat(p.Took, 'f', 2, 64) + "s"
	if p.Took < 0.1 {
		took = strconv.FormatFloat(p.Took, 'f', 3, 64) + "s"
	}
	if p.Method == walked {
		took += ", as far as can be seen without cgroups"
	}
	if ended == 0 && p.Killed == 0 {
		return "no process was left, in " + took
	}
	return fmt.Sprintf("%s ended by TERM, %d by KILL, in %s", plural(ended, "process", "processes"), p.Killed, took)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (s *Spec) fields() []Field {
	if s == nil {
		return nil
	}
	fields := []Field{
		{"Asked for worker", term.Line(s.WorkerID)},
		{"Environment", Labels(s.Env)},
		{"Secrets", strings.Join(s.Secrets, ",")},
		{"Working folder", term.Line(s.Workdir)},
		{"User", term.Line(s.User)},
		{"Timeout", length(s.Timeout)},
		{"Idle timeout", length(s.IdleTimeout)},
		{"Queue timeout", length(s.QueueTimeout)},
		{"Priority", nonzero(int64(s.Priority))},
	}
	if l := s.Limits; l != nil {
		fields = append(fields, Field{"Limits", l.String()})
	}
	if r := s.Retry; r != nil && r.MaxRetries > 0 {
		fields = append(fields, Field{"Retries", r.String()})
	}
	return fields
}

// length is a duration in seconds for people; 0 is none.
func length(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return Duration(time.Duration(seconds * float64(time.Second)))
}

// String lists the limits that are set.
func (l *Limits) String() string {
	var parts []string
	if l.CPUMillis > 0 {
		parts = append(parts, fmt.Sprintf("%g cpus", float64(l.CPUMillis)/1000))
	}
	if l.MemoryBytes > 0 {
		parts = append(parts, Size(l.MemoryBytes)+" memory")
	}
	if l.Pids > 0 {
		parts = append(parts, fmt.Sprintf("%d pids", l.Pids))
	}
	return strings.Join(parts, ", ")
}

// String says how often and when a job is tried again.
func (r *Retry) String() string {
	var when []string
	if r.OnLost {
		when = append(when, "lost")
	}
	if r.OnFailure && len(r.ExitCodes) == 0 {
		when = append(when, "failure")
	}
	for _, c := range r.ExitCodes {
		when = append(when, "exit "+strconv.Itoa(int(c)))
	}
	return fmt.Sprintf("up to %d, on %s", r.MaxRetries, strings.Join(when, ", "))
}
