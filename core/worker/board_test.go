package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
)

// told is in which states a peer has heard of an attempt, in order.
func (p *peer) told(n byte) (states []job.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.frames {
		for _, r := range f.Reports {
			if r.Key == testKey(n) {
				states = append(states, r.State)
			}
		}
	}
	return states
}

func TestAShortJobIsToldOnceAndALongOneSoon(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(1, "run=5ms"), order(2, "run=1m")}}
		time.Sleep(2 * youngLeast)
		if got := fmt.Sprint(p.told(1)); got != "[SUCCEEDED]" {
			t.Errorf("a short job was told as %s", got)
		}
		time.Sleep(youngLeast)
		if got := fmt.Sprint(p.told(2)); got != "[RUNNING]" {
			t.Errorf("after %v a long job was told as %s", 3*youngLeast, got)
		}
		if r, ok := b.board.find(testKey(2)); !ok || r.State != job.Running {
			t.Errorf("a caller finds %v", r.State)
		}
		p.down <- Down{Stops: []job.StopOrder{stopOrder(2, time.Second)}}
		time.Sleep(time.Second)
		p.close(t)
		b.clean()
	})
}

// A session that ends takes nothing with it that has not been told.
func TestANewSessionHearsAtOnceOfWhatJustBegan(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		first := b.connect(1)
		first.down <- Down{Starts: []job.StartOrder{order(1, "run=1m")}}
		time.Sleep(youngLeast / 2)
		second := b.connect(1)
		time.Sleep(time.Millisecond)
		if got := fmt.Sprint(second.told(1)); got != "[RUNNING]" {
			t.Errorf("a new session was told %s", got)
		}
		if len(first.told(1)) > 0 {
			t.Errorf("the session before was told %v", first.told(1))
		}
		time.Sleep(youngMost)
		if got := fmt.Sprint(second.told(1)); got != "[RUNNING]" {
			t.Errorf("it was told again: %s", got)
		}
		second.down <- Down{Stops: []job.StopOrder{stopOrder(1, time.Second)}}
		time.Sleep(time.Second)
		second.close(t)
		b.clean()
	})
}

func TestYouthGrowsWithWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	for live, want := range map[int]time.Duration{0: youngLeast, 1: youngLeast, 100: 40 * time.Millisecond, 10_000: youngMost} {
		if got := youth(live); got != want {
			t.Errorf("%d attempts: %v, want %v", live, got, want)
		}
	}
}
