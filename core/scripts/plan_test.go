package scripts

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const settle = 20 * time.Millisecond

func version(n int64) signature { return signature{Ino: 1, Size: n, Changed: n} }

func TestAChangeIsPublishedOnceItHasSettled(t *testing.T) {
	t.Parallel()
	published := map[string]signature{"same": version(1), "edited": version(1), "gone": version(1)}
	seen := map[string]signature{"same": version(1), "edited": version(2), "new": version(1)}
	p := decide(published, seen, nil, 0, settle)
	if len(p.copy)+len(p.drop) > 0 || !p.waiting || len(p.pending) != 3 {
		t.Fatalf("at once: %+v", p)
	}
	p = decide(published, seen, p.pending, settle-1, settle)
	if len(p.copy)+len(p.drop) > 0 || !p.waiting {
		t.Fatalf("too early: %+v", p)
	}
	p = decide(published, seen, p.pending, settle, settle)
	if !slices.Equal(p.copy, []string{"edited", "new"}) || !slices.Equal(p.drop, []string{"gone"}) || p.waiting {
		t.Fatalf("settled: %+v", p)
	}
}

func TestAFurtherChangeStartsTheWaitAnew(t *testing.T) {
	t.Parallel()
	p := decide(nil, map[string]signature{"a": version(1)}, nil, 0, settle)
	p = decide(nil, map[string]signature{"a": version(2)}, p.pending, settle, settle)
	if len(p.copy) > 0 || p.pending["a"].since != settle {
		t.Errorf("%+v", p)
	}
}

func TestAFileThatComesBackIsNotDropped(t *testing.T) {
	t.Parallel()
	published := map[string]signature{"a": version(1)}
	p := decide(published, nil, nil, 0, settle)
	if !p.waiting {
		t.Fatalf("%+v", p)
	}
	p = decide(published, published, p.pending, 2*settle, settle)
	if p.waiting || len(p.pending)+len(p.drop)+len(p.copy) > 0 {
		t.Errorf("%+v", p)
	}
}

// Whatever happens to the files and whenever is looked: nothing is taken that has
// not been the same for the settle time, and after a rest everything is.
func TestEverythingConvergesAndNothingTooEarly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c"}
		published, seen := map[string]signature{}, map[string]signature{}
		since, absent := map[string]time.Duration{}, map[string]time.Duration{}
		var pending map[string]observation
		now := time.Duration(0)
		apply := func() {
			for _, n := range names {
				// Who came back and went again between two looks was seen as gone.
				if _, there := seen[n]; there {
					delete(absent, n)
				} else if _, known := absent[n]; !known {
					absent[n] = now
				}
			}
			p := decide(published, seen, pending, now, settle)
			pending = p.pending
			for _, n := range p.copy {
				if now-since[n] < settle {
					t.Fatalf("%s was taken %v after its last change", n, now-since[n])
				}
				published[n] = seen[n]
			}
			for _, n := range p.drop {
				if now-absent[n] < settle {
					t.Fatalf("%s was dropped %v after it was seen to be gone", n, now-absent[n])
				}
				delete(published, n)
			}
		}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 30).Draw(t, "ms")) * time.Millisecond
			n := rapid.SampledFrom(names).Draw(t, "name")
			switch rapid.IntRange(0, 2).Draw(t, "act") {
			case 0:
				seen[n], since[n] = version(int64(now)+1), now
			case 1:
				if _, ok := seen[n]; ok {
					delete(seen, n)
					since[n] = now
				}
			case 2:
				apply()
			}
		}
		apply()
		now += settle
		apply()
		if !maps.Equal(published, seen) {
			t.Fatalf("published %v, there are %v", published, seen)
		}
	})
}

func TestPaceLooksAtOnceAfterARest(t *testing.T) {
	t.Parallel()
	p := &pace{settle: settle}
	p.looked(time.Second, time.Second+time.Millisecond, false)
	p.heard(time.Minute)
	if p.due != time.Minute {
		t.Errorf("due at %v", p.due)
	}
}

func TestPaceKeepsLookingASmallShareOfTime(t *testing.T) {
	t.Parallel()
	p := &pace{settle: settle}
	p.looked(time.Second, time.Second+100*time.Millisecond, false)
	p.heard(p.ended)
	if p.due != p.ended+500*time.Millisecond {
		t.Errorf("due %v after a look of 100ms", p.due-p.ended)
	}
	earlier := p.due
	p.heard(p.due + time.Second)
	if p.due != earlier {
		t.Error("more news put the look off")
	}
	p.urge(p.ended)
	if p.due != p.ended {
		t.Errorf("who waits is served %v later", p.due-p.ended)
	}
}

func TestPaceRetriesMoreAndMoreRarely(t *testing.T) {
	t.Parallel()
	p := &pace{settle: settle}
	var gaps []time.Duration
	for now := time.Second; len(gaps) < 8; now = p.due {
		p.looked(now, now, true)
		gaps = append(gaps, p.due-now)
	}
	if gaps[0] > settle+2*time.Millisecond || !slices.IsSorted(gaps) || gaps[7] > slowestRetry+time.Millisecond {
		t.Errorf("gaps %v", gaps)
	}
	p.heard(time.Hour)
	p.looked(time.Hour, time.Hour, true)
	if p.due-time.Hour > settle+2*time.Millisecond {
		t.Error("news do not bring the short pause back")
	}
}
