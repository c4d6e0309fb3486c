package scheduler

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

// shelf is a scheduler over 25 jobs that ended, job n in minute n of 2026 on
// worker w0 or w1, submitted by ann or bob.
func shelf(t *testing.T) (s *Scheduler, at func(n int) time.Time) {
	t.Helper()
	st := memory.New()
	at = func(n int) time.Time { return time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC) }
	var b store.Batch
	for n := range 25 {
		j := job.Job{
			ID: v7(at(n), byte(n)), State: job.Succeeded, Submit: at(n), RequestedBy: []string{"ann", "bob"}[n%2],
			Worker: workerID("w0"), WorkerName: "w0", Message: string(rune('a' + n)),
			Spec: job.Spec{Command: "x", Labels: map[string]string{"third": []string{"no", "no", "yes"}[n%3]}},
		}
		if n%5 == 0 {
			j.State, j.Worker, j.WorkerName = job.Failed, workerID("w1"), "w1"
		}
		if err := putJob(&b, &Effect{Put: &j, New: true, Drop: true}); err != nil {
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
	return s, at
}

// v7 is a UUIDv7 of an instant, RFC 9562, 5.7.
func v7(at time.Time, n byte) job.ID {
	id := job.ID{6: 0x70, 8: 0x80, 15: n}
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}

// listed walks all pages and returns the letters of the jobs.
func listed(t *testing.T, s *Scheduler, by Caller, q JobQuery) (letters string, pages int) {
	t.Helper()
	for range 100 {
		jobs, next, err := jobsOf(t.Context(), s, by, q)
		if err != nil {
			t.Fatal(err)
		}
		if q.PageSize > 0 && len(jobs) > q.PageSize {
			t.Errorf("a page of %d jobs", len(jobs))
		}
		for _, j := range jobs {
			letters += j.Message
		}
		pages++
		if q.PageToken = next; next == "" {
			return letters, pages
		}
	}
	t.Fatal("pages without an end")
	return "", 0
}

func TestListsOfJobs(t *testing.T) {
	t.Parallel()
	s, at := shelf(t)
	const all = "yxwvutsrqponmlkjihgfedcba"
	for _, c := range []struct {
		name  string
		by    Caller
		query JobQuery
		want  string
		pages int
	}{
		{"all, newest first", admin(), JobQuery{}, all, 1},
		{"in pages", admin(), JobQuery{PageSize: 10}, all, 3},
		{"in pages that fit", admin(), JobQuery{PageSize: 5}, all, 5},
		{"one by one", admin(), JobQuery{PageSize: 1}, all, 25},
		{"by state", admin(), JobQuery{States: []job.State{job.Failed}}, "upkfa", 1},
		{"by state in pages", admin(), JobQuery{States: []job.State{job.Failed, job.Lost}, PageSize: 2}, "upkfa", 3},
		{"by worker", admin(), JobQuery{Worker: "w1"}, "upkfa", 1},
		{"by worker's id", admin(), JobQuery{Worker: workerID("w1").String()}, "upkfa", 1},
		{"by label", admin(), JobQuery{Labels: map[string]string{"third": "yes"}}, "xurolifc", 1},
		{"by a label that none has", admin(), JobQuery{Labels: map[string]string{"fourth": ""}}, "", 1},
		{"since an instant", admin(), JobQuery{Since: at(20)}, "yxwvu", 1},
		{"since an instant between", admin(), JobQuery{Since: at(20).Add(time.Nanosecond)}, "yxwvu", 1},
		{"since later", admin(), JobQuery{Since: at(20).Add(time.Millisecond)}, "yxwv", 1},
		{"since tomorrow", admin(), JobQuery{Since: at(9999)}, "", 1},
		{"all filters", admin(), JobQuery{Since: at(3), Worker: "w1", States: []job.State{job.Failed}, Labels: map[string]string{"third": "yes"}}, "uf", 1},
		{"a submitter's own", Caller{Name: "bob", Role: roleSubmitter}, JobQuery{Since: at(15)}, "xvtrp", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got, pages := listed(t, s, c.by, c.query); got != c.want || pages != c.pages {
				t.Errorf("%q in %d pages, want %q in %d", got, pages, c.want, c.pages)
			}
		})
	}
	for _, token := range []string{"x", "00", strings.Repeat("zz", 16)} {
		_, _, err := jobsOf(t.Context(), s, admin(), JobQuery{PageToken: token})
		wantErr(t, err, errs.Invalid, "PAGE_TOKEN")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := jobsOf(ctx, s, admin(), JobQuery{})
	wantErr(t, err, errs.Internal, "STORE")
}

func TestAPageBeginsWhereTheLastEndedWhateverCameMeanwhile(t *testing.T) {
	t.Parallel()
	s, at := shelf(t)
	jobs, next, err := jobsOf(t.Context(), s, admin(), JobQuery{PageSize: 3})
	if err != nil || len(jobs) != 3 {
		t.Fatalf("%v, %v", jobs, err)
	}
	var b store.Batch
	if err := putJob(&b, &Effect{Put: &job.Job{ID: v7(at(100), 0), Message: "!", State: job.Lost}, New: true, Drop: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.config.Store.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		if cancel(); <-ended != nil {
			t.Error("the scheduler ended with an error")
		}
	}()
	if err := s.RemoveJobs(t.Context(), admin(), []string{jobs[2].ID.String()}); err != nil {
		t.Fatal(err)
	}
	if got, _ := listed(t, s, admin(), JobQuery{PageSize: 30, PageToken: next}); got != "vutsrqponmlkjihgfedcba" {
		t.Errorf("%q", got)
	}
}

func TestReferencesToJobs(t *testing.T) {
	t.Parallel()
	s, at := shelf(t)
	id := v7(at(7), 7)
	whole := id.String()
	for _, ref := range []string{whole, strings.ToUpper(whole), whole[:13], strings.ReplaceAll(whole, "-", ""), "00000007", "0007"} {
		if j, err := s.Job(t.Context(), admin(), ref, false); err != nil || j.ID != id {
			t.Errorf("%q: %v, %v", ref, j.ID, err)
		}
	}
	for _, c := range []struct {
		ref    string
		kind   errs.Kind
		reason string
	}{
		{"", errs.Invalid, "JOB_REF"},
		{"007", errs.Invalid, "JOB_REF"},
		{"job-seven", errs.Invalid, "JOB_REF"},
		{whole + "00", errs.Invalid, "JOB_REF"},
		{whole[:6], errs.Invalid, "JOB_AMBIGUOUS"},
		{"ffff", errs.NotFound, "JOB_UNKNOWN"},
		{uuid.Max.String(), errs.NotFound, "JOB_UNKNOWN"},
	} {
		_, err := s.Job(t.Context(), admin(), c.ref, false)
		wantErr(t, err, c.kind, c.reason)
	}
	if _, err := s.Job(t.Context(), Caller{Name: "bob", Role: roleSubmitter}, whole, false); err != nil {
		t.Errorf("bob's own job: %v", err)
	}
	_, err := s.Job(t.Context(), Caller{Name: "ann", Role: roleSubmitter}, whole, false)
	wantErr(t, err, errs.NotFound, "JOB_UNKNOWN") // not DENIED: that would tell that it exists
}

func TestListsOfWorkersAndScripts(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		for _, name := range []string{"w3", "w1", "w2"} {
			w.join(name, 1, "all.sh", name+".sh")
		}
		names := func(labels map[string]string, size int) (got []string) {
			token := ""
			for {
				ws, next, err := workersOf(w.ctx, w.s, labels, size, token)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range ws {
					got = append(got, x.Name)
				}
				if token = next; next == "" {
					return got
				}
			}
		}
		if got := names(nil, 0); !slices.Equal(got, []string{"w1", "w2", "w3"}) {
			t.Errorf("%v", got)
		}
		if got := names(nil, 2); !slices.Equal(got, []string{"w1", "w2", "w3"}) {
			t.Errorf("in pages %v", got)
		}
		if got := names(map[string]string{"a": "b"}, 0); len(got) != 0 {
			t.Errorf("with a label %v", got)
		}
		scripts := func(worker string, size int) (got []string) {
			token := ""
			for {
				list, next, err := scriptsOf(w.ctx, w.s, worker, size, token)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range list {
					got = append(got, x.Path+strings.Repeat("+", len(x.Workers)))
				}
				if token = next; next == "" {
					return got
				}
			}
		}
		if got := scripts("", 1); !slices.Equal(got, []string{"all.sh+++", "w1.sh+", "w2.sh+", "w3.sh+"}) {
			t.Errorf("%v", got)
		}
		if got := scripts("w2", 0); !slices.Equal(got, []string{"all.sh+", "w2.sh+"}) {
			t.Errorf("of one worker %v", got)
		}
		_, _, err := scriptsOf(w.ctx, w.s, "nobody", 0, "")
		wantErr(t, err, errs.NotFound, "WORKER_UNKNOWN")
		p := w.workers["w3"]
		p.cut()
		if err := w.s.Deregister(w.ctx, p.by, p.id()); err != nil {
			t.Fatal(err)
		}
		if got := scripts("", 0); !slices.Equal(got, []string{"all.sh++", "w1.sh+", "w2.sh+"}) {
			t.Errorf("after one left %v", got)
		}
		if got := w.worker(p.id().String()); got.State != registry.Deregistered {
			t.Errorf("%v", got.State)
		}
	})
}
