package output

import (
	"cmp"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
)

// TestTheChoiceOfRetention: everything that goes has a reason, everything that
// stays has none, nothing goes before what is older, and a second look finds
// nothing more.
func TestTheChoiceOfRetention(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		span := rapid.IntRange(0, 20)
		r := Retention{
			For: time.Duration(span.Draw(t, "for")), FailedFor: time.Duration(span.Draw(t, "failed for")), Count: span.Draw(t, "count"),
		}
		var all []ended
		for i := range rapid.IntRange(0, 40).Draw(t, "attempts") {
			all = append(all, ended{
				key:    job.Key{Job: uuid.UUID{0: byte(rapid.IntRange(0, 3).Draw(t, "job")), 15: byte(i)}, Attempt: 1},
				age:    time.Duration(rapid.IntRange(-5, 30).Draw(t, "age")),
				failed: rapid.Bool().Draw(t, "failed"),
			})
		}
		gone := r.choose(all)
		var kept []ended
		for _, e := range all {
			limit := r.For
			if e.failed {
				limit = r.FailedFor
			}
			old := limit > 0 && e.age >= limit
			if why, goes := gone[e.key]; old != (goes && why == byAge) {
				t.Fatalf("age %v, limit %v: goes %v for %v", e.age, limit, goes, why)
			}
			if gone[e.key] == 0 {
				kept = append(kept, e)
			}
		}
		byNumber := 0
		for _, e := range all {
			if gone[e.key] != byCount {
				continue
			}
			byNumber++
			for _, k := range kept {
				if cmp.Or(cmp.Compare(k.age, e.age), compareKeys(e.key, k.key)) > 0 {
					t.Fatalf("%+v goes and %+v, which is older, stays", e, k)
				}
			}
		}
		if r.Count > 0 && len(kept) > r.Count || byNumber > 0 && len(kept) != r.Count {
			t.Fatalf("%d are kept, %d went for their number, the limit is %d", len(kept), byNumber, r.Count)
		}
		if more := r.choose(kept); len(more) > 0 {
			t.Fatalf("a second look finds %v", more)
		}
	})
}
