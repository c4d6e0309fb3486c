package scheduler

import (
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// slowLink is a link on which one frame at a time is under way until it is let
// through.
type slowLink struct {
	let  chan error
	mu   sync.Mutex // guards sent
	sent []Down
}

func (l *slowLink) Send(d Down) ([]job.Key, error) {
	l.mu.Lock()
	l.sent = append(l.sent, d)
	l.mu.Unlock()
	return nil, <-l.let
}

func (l *slowLink) Recv() (Up, error) { return Up{}, errors.New("nobody reads it here") }
func (l *slowLink) Close() error      { return nil }

func (l *slowLink) frames() []Down {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

func acks(n ...byte) Down {
	var d Down
	for _, i := range n {
		d.Acks = append(d.Acks, job.Key{Job: job.ID{i}})
	}
	return d
}

func TestWhatGathersWhileAFrameIsSentMakesTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLink{let: make(chan error)}
		var o outbox
		o.open(&line{link: l, lost: func(error) { t.Error("the link was given up") }})
		silent := runtime.NumGoroutine()
		o.add(acks(1))
		synctest.Wait()
		o.add(acks(2))
		o.add(acks(3))
		l.let <- nil
		l.let <- nil
		synctest.Wait()
		got := l.frames()
		if len(got) != 2 || len(got[0].Acks) != 1 || len(got[1].Acks) != 2 || got[1].Acks[1].Job != (job.ID{3}) {
			t.Errorf("sent %+v", got)
		}
		if n := runtime.NumGoroutine(); n > silent {
			t.Errorf("%d goroutines when there is nothing to send, %d before", n, silent)
		}
		o.add(acks(4))
		l.let <- nil
		o.shut()
		if got := l.frames(); len(got) != 3 || got[2].Acks[0].Job != (job.ID{4}) {
			t.Errorf("sent %+v", got)
		}
	})
}

func TestALinkThatFailsIsGivenUpAndWhatWaitsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &slowLink{let: make(chan error)}, &slowLink{let: make(chan error, 1)}
		var o outbox
		o.add(acks(1)) // there is no link
		lost := make(chan struct{})
		o.open(&line{link: first, lost: func(error) { close(lost) }})
		synctest.Wait()
		if got := first.frames(); len(got) != 0 {
			t.Errorf("sent what was there before the link: %+v", got)
		}
		o.add(acks(2))
		first.let <- errors.New("broken")
		<-lost
		o.shut()
		o.add(acks(3))
		o.open(&line{link: second})
		o.add(acks(4))
		second.let <- nil
		synctest.Wait()
		if got := second.frames(); len(got) != 1 || len(got[0].Acks) != 1 || got[0].Acks[0].Job != (job.ID{4}) {
			t.Errorf("sent %+v", got)
		}
		o.shut()
	})
}

// TestSmallOrdersPassLargeOnes: twenty starts with a megabyte of input do not hold up
// the small orders that come after them, and are in memory one at a time.
func TestSmallOrdersPassLargeOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slowLink{let: make(chan error)}
		read := 0
		var o outbox
		o.open(&line{link: l, lost: func(error) { t.Error("the link was given up") }, input: func(job.ID) (job.Input, error) {
			read++
			return job.Input{Stdin: make([]byte, 1<<20)}, nil
		}})
		for i := range byte(20) {
			o.add(Down{Starts: []job.StartOrder{{Key: job.Key{Job: job.ID{i}, Attempt: 1}, Input: 1 << 20}}})
		}
		synctest.Wait()
		if read != 1 {
			t.Errorf("%d inputs were read for the first frame", read)
		}
		small := job.Key{Job: job.ID{99}, Attempt: 1}
		o.add(Down{Starts: []job.StartOrder{{Key: small, Input: 5}}, Stops: []job.StopOrder{{Key: small}}})
		l.let <- nil
		synctest.Wait()
		got := l.frames()
		if len(got) != 2 || len(got[1].Starts) != 2 || got[1].Starts[0].Key != small || len(got[1].Stops) != 1 || read != 3 {
			t.Errorf("%d frames, %d inputs read, the second has %+v", len(got), read, got[1])
		}
		for range 19 {
			l.let <- nil
		}
		synctest.Wait()
		starts := 0
		for _, d := range l.frames() {
			for _, s := range d.Starts {
				starts++
				if len(s.Spec.Stdin) != 1<<20 || s.Input != 0 {
					t.Errorf("%v was sent without its input", s.Key)
				}
			}
		}
		if starts != 21 || read != 21 {
			t.Errorf("%d starts with %d inputs", starts, read)
		}
		o.shut()
	})
}

// TestAnOrderThatCannotBeSentIsRefusedAlone: neither one that is too large nor one whose
// input is gone keeps another back or breaks the link.
func TestAnOrderThatCannotBeSentIsRefusedAlone(t *testing.T) {
	t.Parallel()
	key := func(n byte) job.Key { return job.Key{Job: job.ID{n}, Attempt: 1} }
	l := &pickyLink{tooLarge: key(2)}
	refused := map[job.Key]string{}
	line := &line{
		link: l, refuse: func(k job.Key, reason, _ string) { refused[k] = reason },
		input: func(id job.ID) (job.Input, error) {
			if id == key(3).Job {
				return job.Input{}, errs.E("read", errs.NotFound, job.ReasonInputGone, nil)
			}
			return job.Input{Stdin: []byte("in")}, nil
		},
	}
	d := acks(9)
	for n := range byte(5) {
		d.Starts = append(d.Starts, job.StartOrder{Key: key(n), Input: 2})
	}
	if err := line.send(d); err != nil {
		t.Fatal(err)
	}
	if len(refused) != 2 || refused[key(2)] != job.ReasonTooLarge || refused[key(3)] != job.ReasonInputGone {
		t.Errorf("refused %v", refused)
	}
	if len(l.sent.Starts) != 4 || len(l.sent.Acks) != 1 {
		t.Errorf("sent %+v", l.sent)
	}
}

// pickyLink has no frame for one start.
type pickyLink struct {
	tooLarge job.Key
	sent     Down
}

func (l *pickyLink) Send(d Down) ([]job.Key, error) {
	l.sent = d
	return []job.Key{l.tooLarge}, nil
}

func (l *pickyLink) Recv() (Up, error) { return Up{}, errors.New("nobody reads it here") }
func (l *pickyLink) Close() error      { return nil }
