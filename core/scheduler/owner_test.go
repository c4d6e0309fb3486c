package scheduler

import (
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

// holding is a scheduler whose store holds jobs that have ended.
func holding(t *testing.T, jobs ...job.Job) *Scheduler {
	t.Helper()
	st := memory.New()
	var b store.Batch
	for i := range jobs {
		if err := putJob(&b, &Effect{Put: &jobs[i], New: true, Drop: true, Hash: specHash(&jobs[i].Spec)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func endedJob(at time.Time, n byte, by Caller) job.Job {
	return job.Job{ID: v7(at, n), State: job.Succeeded, Submit: at, RequestedBy: by.Name, Owner: by.identity()}
}

// TestOwnerIsTheWholeIdentity: another role, and another person who has the name
// later, own nothing of it. Records without an owner are of the first who had the name.
func TestOwnerIsTheWholeIdentity(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	admin := Caller{"root", "admin", "l1"}
	first, second, aged := Caller{"root", roleSubmitter, "l2"}, Caller{"root", roleSubmitter, "l3"}, Caller{"root", roleSubmitter, ""}
	old := job.Job{ID: v7(at, 9), State: job.Succeeded, Submit: at, RequestedBy: "root"}
	jobs := []job.Job{endedJob(at, 1, admin), endedJob(at, 2, first), endedJob(at, 3, second), endedJob(at, 4, aged), old}
	s := holding(t, jobs...)
	for _, c := range []struct {
		by   Caller
		want string // last digits of the jobs that are seen
	}{
		{admin, "12349"},
		{Caller{"vera", "viewer", ""}, "12349"},
		{first, "2"},
		{second, "3"},
		{aged, "49"},
		{Caller{"root", roleSubmitter, "l4"}, ""},
		{Caller{"roo", roleSubmitter, ""}, ""},
		{Caller{"root/l2", roleSubmitter, ""}, ""},
	} {
		seen, listed := "", ""
		for i := range jobs {
			digit := jobs[i].ID.String()[35:]
			j, err := s.Job(t.Context(), c.by, jobs[i].ID.String(), false)
			if err == nil {
				seen += digit
			} else if errs.KindOf(err) != errs.NotFound || strings.Contains(err.Error(), "RequestedBy") {
				t.Errorf("%v: %v, %v", c.by, j, err)
			}
		}
		got, _, err := jobsOf(t.Context(), s, c.by, JobQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			listed = got[i].ID.String()[35:] + listed
		}
		if seen != c.want || listed != c.want {
			t.Errorf("%v sees %q and lists %q, want %q", c.by, seen, listed, c.want)
		}
	}
}

// TestRequestIDsBelongToTheWholeIdentity: nobody gets the job of another with them,
// and what an earlier version accepted is still known (P1).
func TestRequestIDsBelongToTheWholeIdentity(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		spec := job.Spec{Path: "a.sh", QueueTimeout: time.Hour}
		callers := []Caller{{"root", "admin", "l1"}, {"root", roleSubmitter, "l1"}, {"root", roleSubmitter, "l2"}, {"root", roleSubmitter, ""}}
		ids := map[job.ID]bool{}
		for _, by := range callers {
			id, err := w.s.StartJob(w.ctx, by, spec, "same")
			if err != nil {
				t.Fatal(err)
			}
			again, err := w.s.StartJob(w.ctx, by, spec, "same")
			if err != nil || again != id {
				t.Errorf("%v: again it is %v, %v", by, again, err)
			}
			ids[id] = true
		}
		if len(ids) != len(callers) {
			t.Errorf("%d callers have %d jobs", len(callers), len(ids))
		}
	})
	spec := job.Spec{Command: "x"}
	old := job.Job{ID: v7(time.Now(), 1), State: job.Succeeded, RequestedBy: "ann", RequestID: "r", Spec: spec}
	s := holding(t, old)
	for _, c := range []struct {
		by    Caller
		known bool
	}{{Caller{"ann", roleSubmitter, ""}, true}, {Caller{"ann", roleSubmitter, "l1"}, false}, {Caller{"bob", roleSubmitter, ""}, false}} {
		sub := &Submit{Caller: c.by, RequestID: "r"}
		if err := s.lookUpOne(t.Context(), sub); err != nil || (sub.Earlier != nil) != c.known {
			t.Errorf("%v: %v, %v", c.by, sub.Earlier, err)
		}
	}
}

// TestReferencesMeanTheCallersOwnJobs: those of others neither make them ambiguous nor
// are told.
func TestReferencesMeanTheCallersOwnJobs(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ann, bob := Caller{"ann", roleSubmitter, "a"}, Caller{"bob", roleSubmitter, "b"}
	var jobs []job.Job
	for n := range 40 { // one end, one beginning
		by := bob
		if n == 20 || n == 30 {
			by = ann
		}
		j := endedJob(at.Add(time.Duration(n)*time.Millisecond), 7, by)
		if n == 30 {
			j.ID[15] = 8
		}
		jobs = append(jobs, j)
	}
	s := holding(t, jobs...)
	if j, err := s.Job(t.Context(), ann, "00000007", false); err != nil || j.ID != jobs[20].ID {
		t.Errorf("%v, %v", j.ID, err)
	}
	for _, c := range []struct {
		by     Caller
		ref    string
		reason string
	}{
		{ann, jobs[0].ID.String()[:8], "JOB_AMBIGUOUS"}, // of her own two
		{bob, "00000007", "JOB_AMBIGUOUS"},
		{bob, "00000008", "JOB_UNKNOWN"},
		{Caller{"eve", roleSubmitter, "e"}, "00000007", "JOB_UNKNOWN"},
		{Caller{"eve", roleSubmitter, "e"}, strings.ToUpper(jobs[0].ID.String()), "JOB_UNKNOWN"},
	} {
		_, err := s.Job(t.Context(), c.by, c.ref, false)
		if errs.ReasonOf(err) != c.reason {
			t.Errorf("%s by %s: %v", c.ref, c.by.Name, err)
			continue
		}
		for i := range jobs {
			if id := jobs[i].ID.String(); !c.by.owns(&jobs[i]) && strings.Contains(err.Error(), id) && c.ref != id {
				t.Errorf("%s by %s tells of %s: %v", c.ref, c.by.Name, id, err)
			}
		}
	}
	_, missing := s.Job(t.Context(), ann, strings.ToUpper(v7(at, 99).String()), false)
	_, others := s.Job(t.Context(), ann, strings.ToUpper(jobs[0].ID.String()), false)
	if a, b := strings.ReplaceAll(missing.Error(), strings.ToUpper(v7(at, 99).String()), "X"), strings.ReplaceAll(others.Error(), strings.ToUpper(jobs[0].ID.String()), "X"); a != b {
		t.Errorf("a job that is not there: %s; one of another: %s", a, b)
	}
}

// TestPagesTellNoIDsOfOthers: where one goes on is a job of the caller, or a moment.
func TestPagesTellNoIDsOfOthers(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ann, bob := Caller{"ann", roleSubmitter, "a"}, Caller{"bob", roleSubmitter, "b"}
	var jobs []job.Job
	for n := range 48 {
		by := bob
		if n%12 == 3 {
			by = ann
		}
		j := endedJob(at.Add(time.Duration(n/4)*time.Millisecond), byte(n), by)
		j.Spec.Args = []string{strings.Repeat("x", maxScanBytes/20)}
		jobs = append(jobs, j)
	}
	s := holding(t, jobs...)
	got, token := map[job.ID]bool{}, ""
	for page := 0; ; page++ {
		own, next, err := jobsOf(t.Context(), s, ann, JobQuery{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for i := range own {
			if got[own[i].ID] {
				t.Errorf("%v came twice", own[i].ID)
			}
			got[own[i].ID] = true
		}
		for i := range jobs {
			if id := strings.ReplaceAll(jobs[i].ID.String(), "-", ""); next == id && !ann.owns(&jobs[i]) {
				t.Errorf("the token is the job %s of another", id)
			}
		}
		if token = next; token == "" {
			if page < 2 {
				t.Errorf("only %d pages", page)
			}
			break
		}
	}
	if len(got) != 4 {
		t.Errorf("%d of 4 jobs came", len(got))
	}
}
