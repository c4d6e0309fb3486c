package scheduler

import (
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/job"
)

// slowLink is a link on which one frame at a time is under way until it is let
// through.
type slowLink struct {
	let  chan error
	mu   sync.Mutex // guards sent
	sent []Down
}

func (l *slowLink) Send(d Down) error {
	l.mu.Lock()
	l.sent = append(l.sent, d)
	l.mu.Unlock()
	return <-l.let
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
		o.open(l, func() { t.Error("the link was given up") })
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
		o.open(first, func() { close(lost) })
		synctest.Wait()
		if got := first.frames(); len(got) != 0 {
			t.Errorf("sent what was there before the link: %+v", got)
		}
		o.add(acks(2))
		first.let <- errors.New("broken")
		<-lost
		o.shut()
		o.add(acks(3))
		o.open(second, func() {})
		o.add(acks(4))
		second.let <- nil
		synctest.Wait()
		if got := second.frames(); len(got) != 1 || len(got[0].Acks) != 1 || got[0].Acks[0].Job != (job.ID{4}) {
			t.Errorf("sent %+v", got)
		}
		o.shut()
	})
}
