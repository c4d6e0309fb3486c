package runner

import (
	"slices"
	"testing"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// TestAStartEndsWithItsSession: P2. The next session belongs to a restarted worker,
// which may give to another process what this one has not begun; what it has begun
// it tells.
func TestAStartEndsWithItsSession(t *testing.T) {
	t.Parallel()
	s, err := NewServer(&scripted{}, ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	before := s.openSession()
	if _, ok := s.enter(&runnerv1.Start{Id: "begun"}, before); !ok {
		t.Fatal("a start of the present session is refused")
	}
	s.closeSession(before)
	if _, ok := s.enter(&runnerv1.Start{Id: "between"}, before); ok {
		t.Error("a start is begun although its session is over")
	}
	now := s.openSession()
	if _, ok := s.enter(&runnerv1.Start{Id: "late"}, before); ok {
		t.Error("a start of an earlier session is begun in a later one")
	}
	if got := now.frame.GetBeginning(); !slices.Equal(got, []string{"begun"}) || !now.frame.GetSynced() {
		t.Errorf("the new session is told %v", now.frame)
	}
	if _, ok := s.enter(&runnerv1.Start{Id: "late"}, now); !ok {
		t.Error("a start that was dropped cannot be asked for again")
	}
	if _, ok := s.enter(&runnerv1.Start{Id: "begun"}, now); ok {
		t.Error("a start is begun twice")
	}
}
