package render

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Worker is a worker as JSON shows it. The names are stable: scripts read them.
type Worker struct {
	WorkerID     string            `json:"worker_id"`
	Name         string            `json:"name"`
	Address      string            `json:"address"`
	State        string            `json:"state"`
	Labels       map[string]string `json:"labels"`
	Slots        uint32            `json:"slots"`
	Running      uint32            `json:"running"`
	Runners      []Runner          `json:"runners"`
	Scripts      uint32            `json:"scripts"`
	LeaseExpires *time.Time        `json:"lease_expires"`
	BootID       string            `json:"boot_id"`
	Version      string            `json:"version"`
	Conditions   []Condition       `json:"conditions"`
	DrainReason  string            `json:"drain_reason"`
	Commands     []string          `json:"commands"`
	Uploads      bool              `json:"uploads"`
}

// Runner is a runner plugin as JSON shows it.
type Runner struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	SHA256   string   `json:"sha256"`
	State    string   `json:"state"`
	Jobs     uint32   `json:"jobs"`
	Commands []string `json:"commands"`
	Message  string   `json:"message"`
}

// Condition is something to know about a worker, as JSON shows it.
type Condition struct {
	Type    string     `json:"type"`
	Message string     `json:"message"`
	Since   *time.Time `json:"since"`
}

// NewWorker makes the view of a worker.
func NewWorker(w *droverv1.Worker) Worker {
	v := Worker{
		WorkerID: w.GetWorkerId(), Name: w.GetName(), Address: w.GetAddress(), State: strings.TrimPrefix(w.GetState().String(), "WORKER_STATE_"),
		Labels: w.GetLabels(), Slots: w.GetSlots(), Running: w.GetRunning(), Runners: []Runner{}, Scripts: w.GetScripts(),
		LeaseExpires: timeOf(w.GetLeaseExpires()), BootID: w.GetBootId(), Version: w.GetVersion(), Conditions: []Condition{},
		DrainReason: w.GetDrainReason(), Commands: w.GetCommands(), Uploads: w.GetUploads(),
	}
	for _, r := range w.GetRunners() {
		commands := r.GetCommands()
		if commands == nil {
			commands = []string{}
		}
		v.Runners = append(v.Runners, Runner{
			r.GetName(), r.GetVersion(), r.GetSha256(), r.GetState(), r.GetJobs(), commands, r.GetMessage(),
		})
	}
	for _, c := range w.GetConditions() {
		v.Conditions = append(v.Conditions, Condition{c.GetType(), c.GetMessage(), timeOf(c.GetSince())})
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	if v.Commands == nil {
		v.Commands = []string{}
	}
	return v
}

func allowed(yes bool) string {
	if yes {
		return "allowed"
	}
	return "refused"
}

// Workers makes the views of several workers.
func Workers(ws []*droverv1.Worker) []Worker {
	out := make([]Worker, len(ws))
	for i, w := range ws {
		out[i] = NewWorker(w)
	}
	return out
}

// Key implements Row.
func (w Worker) Key() string { return w.WorkerID }

// Label implements Row.
func (w Worker) Label() string { return w.Name }

// WorkerHeader is the header of a table of workers.
func WorkerHeader(f Format) []string {
	if f == Wide {
		return []string{"NAME", "ID", "STATE", "RUNNING", "SLOTS", "RUNNERS", "SCRIPTS", "LABELS", "ADDRESS", "VERSION", "LEASE", "CONDITIONS"}
	}
	return []string{"NAME", "ID", "STATE", "RUNNING", "RUNNERS", "SCRIPTS", "LABELS", "CONDITIONS"}
}

// Cells implements Row.
func (w Worker) Cells(p *Printer) []string {
	state := p.Palette.Paint(colour(w.State), w.State)
	runners := make([]string, 0, len(w.Runners))
	for _, r := range w.Runners {
		name := r.Name
		if r.State != "ready" {
			name += "(" + r.State + ")"
		}
		if p.Format == Wide {
			name += "@" + r.Version
		}
		runners = append(runners, term.Line(name))
	}
	conditions := make([]string, 0, len(w.Conditions))
	for _, c := range w.Conditions {
		conditions = append(conditions, term.Line(c.Type))
	}
	scripts, name := strconv.Itoa(int(w.Scripts)), term.Line(w.Name)
	if p.Format == Wide {
		return []string{
			name, w.WorkerID, state, strconv.Itoa(int(w.Running)), strconv.Itoa(int(w.Slots)), orDash(strings.Join(runners, ",")), scripts,
			orDash(Labels(w.Labels)), orDash(term.Line(w.Address)), orDash(term.Line(w.Version)), w.lease(p.Now), orDash(strings.Join(conditions, ",")),
		}
	}
	return []string{
		name, ShortID(w.WorkerID), state, fmt.Sprintf("%d/%d", w.Running, w.Slots), orDash(strings.Join(runners, ",")), scripts,
		orDash(Labels(w.Labels)), orDash(strings.Join(conditions, ",")),
	}
}

// lease is what is left of the lease.
func (w Worker) lease(now time.Time) string {
	if w.LeaseExpires == nil {
		return "-"
	}
	if left := w.LeaseExpires.Sub(now); left > 0 {
		return Duration(left.Round(100 * time.Millisecond))
	}
	return "expired"
}

// Details tells all about one worker, for people.
func (w Worker) Details(p *Printer) []Field {
	state := p.Palette.Paint(colour(w.State), w.State)
	if w.DrainReason != "" {
		state += " (" + term.Line(w.DrainReason) + ")"
	}
	fields := []Field{
		{"Worker", w.WorkerID},
		{"Name", term.Line(w.Name)},
		{"State", state},
		{"Address", term.Line(w.Address)},
		{"Lease", w.lease(p.Now)},
		{"Running", fmt.Sprintf("%d of %d slots", w.Running, w.Slots)},
		{"Scripts", strconv.Itoa(int(w.Scripts))},
		{"Labels", Labels(w.Labels)},
		{"Commands", term.Line(strings.Join(w.Commands, " "))},
		{"Uploads", allowed(w.Uploads)},
		{"Version", term.Line(w.Version)},
		{"Boot", term.Line(w.BootID)},
	}
	for _, r := range w.Runners {
		fields = append(fields, Field{"Runner " + term.Line(r.Name), r.line(p)})
	}
	for _, c := range w.Conditions {
		fields = append(fields, Field{term.Line(c.Type), term.Line(c.Message)})
	}
	return fields
}

func (r Runner) line(p *Printer) string {
	text := fmt.Sprintf("%s %s, %s, serves %s", term.Line(r.Version), p.Palette.Paint(colour(r.State), term.Line(r.State)),
		plural(int(r.Jobs), "job", "jobs"), orDash(term.Line(strings.Join(r.Commands, " "))))
	if r.Message != "" {
		text += ": " + term.Line(r.Message)
	}
	return text
}

// WorkerRunner is a runner on a worker, for lists over all workers.
type WorkerRunner struct {
	WorkerID   string `json:"worker_id"`
	WorkerName string `json:"worker_name"`
	Runner
}

// Runners lists the runners of workers.
func Runners(ws []Worker) []WorkerRunner {
	out := []WorkerRunner{}
	for _, w := range ws {
		for _, r := range w.Runners {
			out = append(out, WorkerRunner{w.WorkerID, w.Name, r})
		}
	}
	return out
}

// RunnerHeader is the header of a table of runners.
func RunnerHeader(Format) []string {
	return []string{"WORKER", "RUNNER", "VERSION", "SHA256", "STATE", "JOBS", "COMMANDS", "MESSAGE"}
}

// Key implements Row.
func (r WorkerRunner) Key() string { return r.Name }

// Label implements Row.
func (r WorkerRunner) Label() string { return r.Name }

// Cells implements Row.
func (r WorkerRunner) Cells(p *Printer) []string {
	sum := r.SHA256
	if p.Format != Wide {
		sum = Cut(sum, 13)
	}
	return []string{
		term.Line(r.WorkerName), term.Line(r.Name), orDash(term.Line(r.Version)), orDash(term.Line(sum)), p.Palette.Paint(colour(r.State), term.Line(r.State)),
		strconv.Itoa(int(r.Jobs)), orDash(term.Line(strings.Join(r.Commands, ","))), orDash(term.Line(r.Message)),
	}
}

// Script is a published script as JSON shows it.
type Script struct {
	Path        string     `json:"path"`
	Folder      string     `json:"folder"`
	SHA256      string     `json:"sha256"`
	Size        uint64     `json:"size"`
	ModifyTime  *time.Time `json:"modify_time"`
	WorkerIDs   []string   `json:"worker_ids"`
	WorkerNames []string   `json:"worker_names"`
}

// NewScript makes the view of a script; names are those of workers by id.
func NewScript(s *droverv1.Script, names map[string]string) Script {
	v := Script{s.GetPath(), s.GetFolder(), s.GetSha256(), s.GetSize(), timeOf(s.GetModifyTime()), s.GetWorkerIds(), []string{}}
	if v.WorkerIDs == nil {
		v.WorkerIDs = []string{}
	}
	for _, id := range v.WorkerIDs {
		if name, ok := names[id]; ok {
			v.WorkerNames = append(v.WorkerNames, name)
		} else {
			v.WorkerNames = append(v.WorkerNames, ShortID(id))
		}
	}
	slices.Sort(v.WorkerNames)
	return v
}

// WorkerNames maps ids to names.
func WorkerNames(ws []*droverv1.Worker) map[string]string {
	return maps.Collect(func(yield func(string, string) bool) {
		for _, w := range ws {
			if !yield(w.GetWorkerId(), w.GetName()) {
				return
			}
		}
	})
}

// Key implements Row.
func (s Script) Key() string { return s.Path }

// Label implements Row.
func (s Script) Label() string { return s.Path }

// ScriptHeader is the header of a table of scripts.
func ScriptHeader(Format) []string {
	return []string{"SCRIPT", "FOLDER", "SHA256", "SIZE", "CHANGED", "WORKERS"}
}

// Cells implements Row.
func (s Script) Cells(p *Printer) []string {
	sha, changed := s.SHA256, time.Time{}
	if p.Format != Wide {
		sha = Cut(sha, 13)
	}
	if s.ModifyTime != nil {
		changed = *s.ModifyTime
	}
	return []string{
		term.Line(s.Path), term.Line(s.Folder), term.Line(sha), Size(s.Size), orDash(Age(p.Now, changed)),
		orDash(term.Line(strings.Join(s.WorkerNames, ","))),
	}
}

// Details tells all about one version of a script, for people.
func (s Script) Details(*Printer) []Field {
	return []Field{
		{"Script", term.Line(s.Path)},
		{"Folder", term.Line(s.Folder)},
		{"Sha256", term.Line(s.SHA256)},
		{"Size", Size(s.Size)},
		{"Changed", stamp(s.ModifyTime)},
		{"Workers", term.Line(strings.Join(s.WorkerNames, ", "))},
	}
}
