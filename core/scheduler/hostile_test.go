package scheduler

import (
	"context"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// TestP21_ReportsOfUnknownAttempts_KeepNoMemory: a worker that never ends its hello and
// makes up attempts leaves nothing behind, and is still reconciled with what is known.
func TestP21_ReportsOfUnknownAttempts_KeepNoMemory(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		d.link++
		d.step(Event{Up: &UpEvent{Worker: w, Link: d.link, Opened: true}})
		hello := &Hello{BootID: "boot", InstanceID: strings.Repeat("i", 1<<20)}
		d.frame(w, Up{Hello: hello, Reports: []job.Report{d.says(id, job.Running)}})
		for i := range 1000 {
			r := job.Report{Sequence: 1, State: job.Running, Key: job.Key{Attempt: 1}}
			binary.BigEndian.PutUint32(r.Job[:], uint32(i)) //nolint:gosec // it is small
			d.frame(w, Up{Reports: []job.Report{r}})
		}
		if l := d.m.links[w]; len(l.seen) != 1 || len(l.hello.InstanceID) > job.MaxName {
			t.Errorf("%d attempts and %d bytes of an instance are kept", len(l.seen), len(l.hello.InstanceID))
		}
		d.frame(w, Up{Hello: &Hello{BootID: "boot", InstanceID: "one", Complete: true}})
		d.want(id, job.Running, "")
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
				l := newLinks(nil, 1, slog.New(slog.DiscardHandler), func(_ context.Context, ev Event) { inbox <- ev }, nil)
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
