package registry

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/job"
)

// nearness orders the reasons why a worker does not take a job now by how near
// it came; zero: it takes it.
type nearness uint8

const (
	fits nearness = iota
	isOffline
	isDrained
	lacksLabels
	lacksRunner
	lacksUploads
	lacksScript
	lacksDisk
	isFull
	isConnecting // it may be the one: nobody knows yet
	reasonsEnd
)

// String returns the reason as jobs have it.
func (n nearness) String() string {
	return [...]string{
		"", job.ReasonWorkerOffline, job.ReasonWorkerDrained, job.ReasonNoLabels,
		job.ReasonNoRunner, job.ReasonNoUploads, job.ReasonNoScript, job.ReasonDiskFull,
		job.ReasonNoSlot, job.ReasonConnecting,
	}[n]
}

// fit says whether a job can run on a worker now, and if not, the first reason
// in the order in which people look for it.
func (e *entry) fit(s *job.Spec) nearness {
	switch {
	case e.State == Offline || e.State == Deregistered:
		return isOffline
	case e.State == Draining:
		return isDrained
	case !e.hasLabels(s.Labels):
		return lacksLabels
	case s.Path != "" && !e.Listed:
		return isConnecting
	case !e.serves(s.Command, s.Path):
		return lacksRunner
	case s.Uploaded() && !e.Uploads:
		return lacksUploads
	case s.Path != "" && !s.Uploaded() && !e.offers(s.Path):
		return lacksScript
	case e.diskFull():
		return lacksDisk
	case !e.Commanded: // its heartbeats come, but no order would reach it
		return isConnecting
	case e.Running >= e.Slots:
		return isFull
	default:
		return fits
	}
}

// diskFull tells whether the worker would refuse a start.
func (e *entry) diskFull() bool {
	return slices.ContainsFunc(e.Conditions, func(c job.Condition) bool { return c.Type == job.ReasonDiskFull })
}

func (e *entry) hasLabels(want map[string]string) bool {
	for k, v := range want {
		if got, ok := e.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Place chooses a worker for a job: the named one, or of all that fit the one
// with the smallest share of its slots taken, ties by name. The worker where the
// attempt before was made is chosen only if no other fits. Without one it returns
// the reason of the worker that came nearest; with no worker at all NO_WORKER.
func (r *Registry) Place(s *job.Spec, before job.WorkerID) (w Worker, reason string) {
	if s.Worker != "" {
		named, err := r.Find(s.Worker)
		if err != nil {
			return Worker{}, job.ReasonWorkerGone
		}
		return named, r.byID[named.ID].fit(s).String()
	}
	v := r.view(s)
	if best := v.best(before); best != nil {
		return best.Worker, ""
	}
	if why := v.nearest(); why > isOffline {
		return Worker{}, why.String()
	}
	return Worker{}, job.ReasonNoWorker
}

func lessLoaded(a, b *entry) bool {
	if c := cmp.Compare(a.Running*b.Slots, b.Running*a.Slots); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

// Explain is a reason in words, one line, for the job that waits.
func Explain(reason string, s *job.Spec) string {
	if s.Worker != "" {
		if text := explainNamed(reason, s); text != "" {
			return text
		}
	}
	switch reason {
	case job.ReasonOldRecords:
		return "the records of this scheduler are older than what a worker was told; nothing is started"
	case job.ReasonConnecting:
		return "the scheduler has no session yet with a worker that may fit"
	case job.ReasonNoWorker:
		return "no worker is online"
	case job.ReasonWorkerOffline:
		return fmt.Sprintf("the worker %q is offline", s.Worker)
	case job.ReasonWorkerGone:
		return fmt.Sprintf("the worker %q is not known any more", s.Worker)
	case job.ReasonWorkerDrained:
		return "every worker that fits is draining"
	case job.ReasonNoLabels:
		pairs := make([]string, 0, len(s.Labels))
		for k, v := range s.Labels {
			pairs = append(pairs, k+"="+v)
		}
		slices.Sort(pairs)
		return "no online worker has the labels " + strings.Join(pairs, ",")
	case job.ReasonNoRunner:
		return fmt.Sprintf("no online worker that fits can run the command %q", s.Command)
	case job.ReasonNoScript:
		return fmt.Sprintf("no online worker that fits has the script %q", s.Path)
	case job.ReasonNoUploads:
		return "no online worker that fits takes scripts that are sent with a request"
	case job.ReasonDiskFull:
		return "the disk of every worker that fits is full"
	case job.ReasonNoSlot:
		return "every worker that fits is full"
	default:
		return ""
	}
}

// explainNamed speaks of the one worker that was asked for.
func explainNamed(reason string, s *job.Spec) string {
	switch reason {
	case job.ReasonConnecting:
		return fmt.Sprintf("the scheduler has no session yet with the worker %q", s.Worker)
	case job.ReasonWorkerDrained:
		return fmt.Sprintf("the worker %q is draining", s.Worker)
	case job.ReasonNoRunner:
		return fmt.Sprintf("the worker %q cannot run the command %q", s.Worker, s.Command)
	case job.ReasonNoScript:
		return fmt.Sprintf("the worker %q does not have the script %q", s.Worker, s.Path)
	case job.ReasonNoUploads:
		return fmt.Sprintf("the worker %q takes no scripts that are sent with a request", s.Worker)
	case job.ReasonDiskFull:
		return fmt.Sprintf("the disk of the worker %q is full", s.Worker)
	case job.ReasonNoSlot:
		return fmt.Sprintf("the worker %q is full", s.Worker)
	default:
		return ""
	}
}

// Commands lists what the online workers, or the one that is named, can run, for
// messages.
func (r *Registry) Commands(worker, path string) []string {
	seen := map[string]bool{}
	for _, e := range r.byID {
		if e.State != Online || worker != "" && e.Name != worker && e.ID.String() != worker {
			continue
		}
		for _, c := range e.Commands {
			seen[c] = true
		}
		for _, p := range e.Runners {
			for _, c := range p.Commands {
				seen[c] = seen[c] || path != ""
			}
		}
	}
	var out []string
	for c, ok := range seen {
		if ok {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}
