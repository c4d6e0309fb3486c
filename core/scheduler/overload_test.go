package scheduler

import (
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// TestP16ListsAndWatchersAreBounded: who comes too many is put off, and let in
// when there is room again.
func TestP16ListsAndWatchersAreBounded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		list := func() error {
			_, _, err := jobsOf(w.ctx, w.s, admin(), JobQuery{})
			return err
		}
		for range maxLists {
			w.s.lists <- struct{}{}
		}
		if err := list(); errs.KindOf(err) != errs.Exhausted {
			t.Errorf("a list more: %v", err)
		}
		if <-w.s.lists; list() != nil {
			t.Error("there is room and no list")
		}
		for range maxLists - 1 {
			<-w.s.lists
		}
		for range cap(w.s.listing) {
			w.s.listing <- struct{}{}
		}
		done := make(chan error, 1)
		go func() { done <- list() }()
		synctest.Wait()
		if len(done) > 0 || len(w.s.lists) != 1 {
			t.Errorf("%d lists wait for a processor, want 1", len(w.s.lists))
		}
		for range cap(w.s.listing) {
			<-w.s.listing
		}
		if err := <-done; err != nil || len(w.s.lists) != 0 {
			t.Errorf("the list that waited: %v, %d are counted", err, len(w.s.lists))
		}
		var all []*watcher
		for range maxWatchers {
			one, _, _ := w.s.hub.subscribe(job.ID{1})
			all = append(all, one)
		}
		watch := func() error {
			return w.s.watch(w.ctx, "watch", job.ID{1}, true, func() {}, func(Change) error { return nil })
		}
		if err := watch(); errs.KindOf(err) != errs.Exhausted {
			t.Errorf("a watcher more: %v", err)
		}
		for _, one := range all {
			w.s.hub.unsubscribe(one)
		}
		if err := watch(); errs.KindOf(err) != errs.NotFound {
			t.Errorf("there is room: %v", err)
		}
	})
}
