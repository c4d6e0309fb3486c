package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

func withInput(n int) job.Spec {
	s := plain()
	s.Stdin, s.Upload = bytes.Repeat([]byte{'i'}, n), []byte("echo")
	s.Path, s.Secrets = "up.sh", map[string][]byte{"KEY": []byte("hush"), "EMPTY": {}}
	return s
}

func TestAnInputIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := job.Input{
			Stdin: rapid.SliceOf(rapid.Byte()).Draw(t, "stdin"), Upload: rapid.SliceOf(rapid.Byte()).Draw(t, "upload"),
			Secrets: rapid.MapOf(rapid.String(), rapid.SliceOf(rapid.Byte())).Draw(t, "secrets"),
		}
		got, err := decodeInput(encodeInput(&in))
		same := func(a, b []byte) bool { return bytes.Equal(a, b) }
		if err != nil || !same(got.Stdin, in.Stdin) || !same(got.Upload, in.Upload) || !maps.EqualFunc(got.Secrets, in.Secrets, same) {
			t.Fatalf("%+v became %+v, %v", in, got, err)
		}
	})
}

func FuzzDecodeInput(f *testing.F) {
	f.Add(encodeInput(&job.Input{Stdin: []byte("in"), Secrets: map[string][]byte{"KEY": []byte("hush")}}))
	f.Add([]byte{0x1a, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if in, err := decodeInput(data); err == nil {
			if _, err := decodeInput(encodeInput(&in)); err != nil {
				t.Errorf("what was read cannot be read again: %v", err)
			}
		}
	})
}

// TestP16_QueuedInput_IsInTheStoreOnly: neither the machine nor what readers see holds
// it; it is there after a restart, and gone once no attempt can need it.
func TestP16_QueuedInput_IsInTheStoreOnly(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		d.frame(w, Up{Scripts: &job.ScriptIndex{}})
		d.m.workers.Occupy(w, 1)
		spec := withInput(1000)
		spec.Path, spec.Upload = "", nil
		id := d.submit(spec)
		d.want(id, job.Queued, job.ReasonNoSlot)
		for life := range 2 {
			e := d.m.jobs[id]
			if len(e.Spec.Stdin) > 0 || e.Spec.Secrets["KEY"] != nil || len(e.Spec.Secrets) != 2 || e.Input != 1004 {
				t.Errorf("life %d: in memory is %d bytes of stdin, secrets %q, input %d", life, len(e.Spec.Stdin), e.Spec.Secrets, e.Input)
			}
			in, err := d.records.input(context.Background(), id)
			if err != nil || len(in.Stdin) != 1000 || string(in.Secrets["KEY"]) != "hush" || len(in.Secrets) != 2 {
				t.Errorf("life %d: in the store is %+v, %v", life, in, err)
			}
			d.restart()
		}
		d.worker("w", 1)
		d.want(id, job.Dispatched, "")
		if _, err := d.records.input(context.Background(), id); err != nil {
			t.Errorf("the input is gone before the worker has it: %v", err)
		}
		d.report(d.says(id, job.Running))
		if _, err := d.records.input(context.Background(), id); errs.ReasonOf(err) != job.ReasonInputGone {
			t.Errorf("the input is kept while nobody needs it: %v", err)
		}
		if d.job(id).Input != 0 || len(d.job(id).Spec.Secrets) != 2 {
			t.Errorf("the record says %+v", d.job(id))
		}
	})
}

// TestP1_RequestId_WithInput_IsTheSameAfterARestart: the hash is of the whole request,
// also of what is kept apart.
func TestP1_RequestId_WithInput_IsTheSameAfterARestart(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 1)
		spec := job.Spec{Command: "x", Args: []string{"run=1s"}, Stdin: []byte("one")}
		first, err := w.s.StartJob(w.ctx, admin(), spec, "r")
		if err != nil {
			t.Fatal(err)
		}
		w.restart()
		again, err := w.s.StartJob(w.ctx, admin(), spec, "r")
		if err != nil || again != first {
			t.Errorf("the same request is %v, %v", again, err)
		}
		spec.Stdin = []byte("two")
		_, err = w.s.StartJob(w.ctx, admin(), spec, "r")
		wantErr(t, err, errs.Exists, "REQUEST_ID_REUSED")
	})
}

// TestARecordOfBefore_WithLargeInput_IsKeptApart: versions before kept the input, of
// any size, in the record of the job.
func TestARecordOfBefore_WithLargeInput_IsKeptApart(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		old := &job.Job{ID: d.id(), Spec: withInput(8 << 20), State: job.Queued, RequestedBy: "ann"}
		var b store.Batch
		if err := putJob(&b, &Effect{Put: old, New: true}); err != nil {
			t.Fatal(err)
		}
		if err := d.records.store.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		d.restart()
		e := d.m.jobs[old.ID]
		if len(e.Spec.Stdin) > 0 || e.Input != 8<<20+8 || d.m.account.all < 8<<20 {
			t.Errorf("in memory are %d bytes; %d are kept apart, %d are counted", len(e.Spec.Stdin), e.Input, d.m.account.all)
		}
		in, err := d.records.input(t.Context(), old.ID)
		if err != nil || len(in.Stdin) != 8<<20 || string(in.Upload) != "echo" {
			t.Errorf("%d bytes of stdin, upload %q, %v", len(in.Stdin), in.Upload, err)
		}
		if j := d.job(old.ID); len(j.Spec.Stdin) > 0 || j.Input != e.Input {
			t.Errorf("the record of the job still has it")
		}
	})
}

// TestAnOrderThatCannotBeSent_EndsItsJobAlone: the job is REJECTED with the reason, is
// not tried again, and holds nothing any more; what comes late changes nothing.
func TestAnOrderThatCannotBeSent_EndsItsJobAlone(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 4)
		spec := plain()
		spec.Stdin, spec.Retry = []byte("in"), job.Retry{Max: 3, OnLost: true}
		bad, good := d.submit(spec), d.submit(plain())
		refusal := &Refusal{Worker: w, Key: job.Key{Job: bad, Attempt: 1}, Reason: job.ReasonTooLarge, Message: "too large"}
		d.step(Event{Refused: &Refusal{Worker: w, Key: job.Key{Job: bad, Attempt: 2}, Reason: job.ReasonTooLarge}})
		d.want(bad, job.Dispatched, "")
		effects := d.step(Event{Refused: refusal})
		d.want(bad, job.Rejected, job.ReasonTooLarge)
		d.want(good, job.Dispatched, "")
		logged := 0
		for _, e := range effects {
			if e.Refused != nil {
				logged++
			}
		}
		if logged != 1 || d.m.account.all != d.m.jobs[good].bytes {
			t.Errorf("logged %d times; %d bytes are counted", logged, d.m.account.all)
		}
		if got := d.step(Event{Refused: refusal}); len(got) > 0 {
			t.Errorf("the same refusal again does %q", kinds(got))
		}
		d.report(d.says(good, job.Running))
		d.step(Event{Refused: &Refusal{Worker: w, Key: job.Key{Job: good, Attempt: 1}, Reason: job.ReasonTooLarge}})
		d.want(good, job.Running, "")
	})
}

// TestP16_Budget_OneCaller_LeavesRoomForOthers counts again after a restart.
func TestP16_Budget_OneCaller_LeavesRoomForOthers(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		const most = 10_000
		budget := Budget{Caller: most, All: 2 * most}
		d.m.SetBudget(budget)
		submit := func(by string, n int) (job.ID, error) {
			s := plain()
			s.QueueTimeout, s.Stdin = time.Hour, make([]byte, n)
			r := d.ask(Event{Submit: &Submit{ID: d.id(), Spec: s, Caller: Caller{Name: by}, Time: d.now}})
			return r.Job.ID, r.Err
		}
		first, err := submit("ann", 2*most) // alone it is taken, whatever its size
		if err != nil {
			t.Fatal(err)
		}
		_, err = submit("ann", 1)
		wantErr(t, err, errs.Exhausted, "BYTES_EXHAUSTED")
		_, err = submit("bob", 1)
		wantErr(t, err, errs.Exhausted, "BYTES_EXHAUSTED") // all together
		d.restart()
		d.m.SetBudget(budget)
		_, err = submit("ann", 1)
		wantErr(t, err, errs.Exhausted, "BYTES_EXHAUSTED")
		d.stop(first)
		for _, by := range []string{"ann", "bob"} {
			if _, err := submit(by, most/2); err != nil {
				t.Errorf("%s: %v", by, err)
			}
			_, err = submit(by, most/2)
			wantErr(t, err, errs.Exhausted, "BYTES_EXHAUSTED")
		}
	})
}

// connectFunc is a Connector.
type connectFunc func() Link

// Connect implements Connector.
func (f connectFunc) Connect(context.Context, registry.Worker, uint64, job.History) (Link, error) {
	return f(), nil
}

// badConnector makes links that break as soon as the worker has said hello.
type badConnector struct{ good chan struct{} }

type badLink struct {
	from   *badConnector
	hello  bool
	closed chan struct{}
}

func (l *badLink) Send(Down) ([]job.Key, error) { return nil, nil }

func (l *badLink) Recv() (Up, error) {
	if !l.hello {
		l.hello = true
		return Up{Hello: &Hello{Complete: true}}, nil
	}
	select {
	case <-l.from.good:
		<-l.closed
	default:
	}
	return Up{}, errors.New("a frame of 9 MiB")
}

func (l *badLink) Close() error {
	close(l.closed)
	return nil
}

// TestALinkThatBreaksAgainAndAgainIsACondition: it is logged once, and is over once the
// link holds.
func TestALinkThatBreaksAgainAndAgainIsACondition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &logbook{}
		from := &badConnector{good: make(chan struct{})}
		troubles := make(chan string, 100)
		l := newLinks(connectFunc(func() Link { return &badLink{from: from, closed: make(chan struct{})} }), 1, history{}, slog.New(slog.NewTextHandler(book, nil)), func(_ context.Context, ev Event) {
			if ev.Trouble != nil {
				troubles <- ev.Trouble.Message
			}
		}, nil)
		l.dial(registry.Worker{ID: workerID("w1"), Name: "w1"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(troubles); n != 1 || strings.Count(book.String(), "again and again") != 1 {
			t.Fatalf("%d conditions, log %s", n, book)
		}
		if m := <-troubles; !strings.Contains(m, "a frame of 9 MiB") {
			t.Errorf("the condition is %q", m)
		}
		close(from.good)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(troubles); n != 1 {
			t.Fatalf("%d further changes", n)
		}
		if m := <-troubles; m != "" {
			t.Errorf("it ends with %q", m)
		}
		l.closeAll()
	})
}

// TestListsOfManyScriptsAreCutToPages: each page sorts few of many.
func TestListsOfManyScriptsAreCutToPages(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n, most := rapid.IntRange(0, 300).Draw(t, "scripts"), rapid.IntRange(1, 20).Draw(t, "page")
		infos := make([]job.ScriptInfo, n)
		for i := range infos {
			infos[i].Path = fmt.Sprintf("%03d", rapid.IntRange(0, 200).Draw(t, "path"))
		}
		want := map[string]int{}
		for _, x := range infos {
			want[x.Path]++
		}
		got, after := map[string]int{}, job.ScriptInfo{}
		for last := ""; ; {
			s := selection{after: after, most: most}
			for i := range infos {
				s.add(offer{&infos[i], workerID(fmt.Sprint(i))})
			}
			found := s.scripts()
			if len(found) > most {
				t.Fatalf("%d scripts on a page of %d", len(found), most)
			}
			if len(found) == 0 {
				break
			}
			for _, x := range found {
				if x.Path <= last {
					t.Fatalf("%s after %s", x.Path, last)
				}
				last, after = x.Path, x.ScriptInfo
				got[x.Path] = len(x.Workers)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
