package scheduler

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

// TestP21_ReportsOfUnknownAttempts_KeepNoMemory: a worker that never ends its hello and
// makes up attempts leaves a bounded list of them behind, and is still reconciled with
// what is known.
func TestP21_ReportsOfUnknownAttempts_KeepNoMemory(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		d.link++
		d.step(Event{Up: &UpEvent{Worker: w, Link: d.link, Opened: true}})
		hello := &Hello{BootID: "boot", InstanceID: strings.Repeat("i", 1<<20)}
		d.frame(w, Up{Hello: hello, Reports: []job.Report{d.says(id, job.Running)}})
		for i := range 3000 {
			r := job.Report{Sequence: 1, State: job.Running, Key: job.Key{Attempt: 1}}
			binary.BigEndian.PutUint32(r.Job[:], uint32(i)) //nolint:gosec // it is small
			d.frame(w, Up{Reports: []job.Report{r}})
		}
		if l := d.m.links[w]; len(l.seen) != 1 || len(l.hello.InstanceID) > job.MaxName {
			t.Errorf("%d attempts and %d bytes of an instance are kept", len(l.seen), len(l.hello.InstanceID))
		}
		if n := len(d.m.unrecorded[w]); n != maxUnrecorded {
			t.Errorf("%d made-up attempts are kept", n)
		}
		d.frame(w, Up{Hello: &Hello{BootID: "boot", InstanceID: "one", Complete: true}})
		d.want(id, job.Running, "")
		d.hello(w, "boot", d.says(id, job.Running))
		if got, _ := d.m.workers.Get(w); got.Running != 1 || len(got.Unrecorded) != 0 || d.m.unrecordedCount != 0 {
			t.Errorf("of another session are left: %d attempts, %d slots", len(got.Unrecorded), got.Running)
		}
	})
}

// TestP21_AWorkerThatReadsNothing_LosesItsSession: what waits for it is dropped, and the
// error names the limit.
func TestP21_AWorkerThatReadsNothing_LosesItsSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &slowLink{let: make(chan error, 1)}
		var o outbox
		var lost []error
		o.open(&line{link: l, lost: func(err error) { lost = append(lost, err) }})
		o.add(acks(1))
		synctest.Wait()
		o.add(Down{Acks: make([]job.Key, maxWaiting)})
		if len(lost) != 0 {
			t.Fatalf("lost at the limit: %v", lost)
		}
		o.add(acks(2))
		if len(lost) != 1 || errs.ReasonOf(lost[0]) != "OVERLOADED" || !strings.Contains(lost[0].Error(), "262144") {
			t.Errorf("lost with %v", lost)
		}
		o.add(acks(3))
		if o.down.Acks != nil {
			t.Errorf("%d acks wait for a session that has ended", len(o.down.Acks))
		}
		l.let <- nil
		o.shut()
	})
}

// babble is a link that says the same for as long as anybody listens.
type babble struct {
	up     Up
	said   chan struct{}
	closed context.Context //nolint:containedctx // the life of the link
	close  context.CancelFunc
}

func (b *babble) Send(Down) ([]job.Key, error) { return nil, nil }

func (b *babble) Recv() (Up, error) {
	select {
	case b.said <- struct{}{}:
		return b.up, nil
	case <-b.closed.Done():
		return Up{}, b.closed.Err()
	}
}

func (b *babble) Close() error { b.close(); return nil }

// TestP21_FramesThatWait_AreBoundedInBytesPerLink: a worker whose frames are not
// committed yet brings no more into memory, and goes on when they are.
func TestP21_FramesThatWait_AreBoundedInBytesPerLink(t *testing.T) {
	t.Parallel()
	for name, up := range map[string]Up{
		"large frames":     {Bytes: intakeBytes / 4},
		"many reports":     {Bytes: 1, Reports: make([]job.Report, intakeBytes/4/reportBytes)},
		"a frame too many": {Bytes: intakeBytes/4 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				inbox := make(chan Event, 100)
				l := newLinks(nil, 1, history{}, slog.New(slog.DiscardHandler), func(_ context.Context, ev Event) { inbox <- ev }, nil)
				b := &babble{up: up, said: make(chan struct{}, 100)}
				b.closed, b.close = context.WithCancel(t.Context())
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan struct{})
				go func() {
					defer close(over)
					_, _ = l.use(ctx, &connection{worker: registry.Worker{ID: job.WorkerID{1}}, out: &outbox{}}, b, false, false)
				}()
				synctest.Wait()
				most := 4
				if up.Bytes > intakeBytes/4 {
					most = 3
				}
				if n := len(inbox); n != 1+most { // the news that it is open is before them
					t.Errorf("%d frames wait, want %d", n-1, most)
				}
				<-inbox
				(<-inbox).done()
				synctest.Wait()
				if n := len(inbox); n != most {
					t.Errorf("%d frames wait after one is committed, want %d", n, most)
				}
				cancel()
				<-over
			})
		})
	}
}

// TestP21_ACancelledSubmit_HoldsItsBytesUntilItsRoundIsOver: its event is in memory for
// that long, whoever has stopped waiting.
func TestP21_ACancelledSubmit_HoldsItsBytesUntilItsRoundIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(t.Context(), Config{Store: memory.New(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		large := job.Spec{Command: "x", Args: slices.Repeat([]string{strings.Repeat("a", 64<<10)}, 15)}
		for n := 0; errs.KindOf(err) != errs.Exhausted; n++ {
			if _, err = s.StartJob(gone, admin(), large, ""); n > 2*maxPending>>20 {
				t.Fatalf("%d submits of nearly a mebibyte wait: %v", n, err)
			}
		}
		small := []Request{{Spec: job.Spec{Command: "x"}}}
		for range bulksAtOnce {
			if _, err = s.StartJobs(gone, admin(), "", small); errs.KindOf(err) == errs.Exhausted {
				t.Fatal(err)
			}
		}
		_, err = s.StartJobs(gone, admin(), "", small)
		wantErr(t, err, errs.Exhausted, "OVERLOADED")
		ctx, end := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- s.Run(ctx) }()
		synctest.Wait()
		if s.pending != 0 || len(s.bulks) != 0 {
			t.Errorf("after their rounds %d bytes and %d requests are counted", s.pending, len(s.bulks))
		}
		if end(); <-over != nil {
			t.Error("the scheduler failed")
		}
	})
}

// TestP22_AListOfRevocationsThatAllWereTold_IsNotSentAgain: certificates change more often
// than it does.
func TestP22_AListOfRevocationsThatAllWereTold_IsNotSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wire := &slowLink{let: make(chan error, 10)}
		for range cap(wire.let) {
			wire.let <- nil
		}
		l := newLinks(nil, 1, history{}, slog.New(slog.DiscardHandler), nil, nil)
		c := &connection{out: &outbox{}}
		l.byID[job.WorkerID{1}] = c
		c.out.open(&line{link: wire})
		for _, list := range []string{"one", "one", "two", "two", "one"} {
			l.revoke([]byte(list))
			synctest.Wait()
		}
		var told []string
		for _, d := range wire.frames() {
			told = append(told, string(d.Revocations))
		}
		if got := strings.Join(told, " "); got != "one two one" {
			t.Errorf("told %s", got)
		}
	})
}

// reads counts the records that are read one by one.
type reads struct {
	store.Store
	n atomic.Int64
}

func (r *reads) Get(ctx context.Context, key []byte) ([]byte, error) {
	r.n.Add(1)
	return r.Store.Get(ctx, key)
}

// TestP21_AShortReference_ReadsFewRecords: however many jobs of others it fits; the
// caller's own newest one is found among them.
func TestP21_AShortReference_ReadsFewRecords(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ann, bob := Caller{"ann", roleSubmitter, "a"}, Caller{"bob", roleSubmitter, "b"}
	var jobs []job.Job
	for n := range 2 * maxFits {
		jobs = append(jobs, endedJob(at.Add(time.Duration(n)*time.Millisecond), 1, bob))
	}
	own := endedJob(at.Add(time.Second), 1, ann)
	s := holding(t, append(jobs, own)...)
	counted := &reads{Store: s.config.Store}
	s.config.Store, s.records = counted, records{counted}
	beginning := own.ID.String()[:6]
	if j, err := s.Job(t.Context(), ann, beginning, false); err != nil || j.ID != own.ID {
		t.Errorf("%v, %v", j.ID, err)
	}
	_, err := s.Job(t.Context(), Caller{"eve", roleSubmitter, "e"}, beginning, false)
	wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
	if n := counted.n.Load(); n > 2*maxFits {
		t.Errorf("%d records were read for two references", n)
	}
}
