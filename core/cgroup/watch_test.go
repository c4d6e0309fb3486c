package cgroup

import (
	"testing"

	"github.com/droverhq/drover/core/job"
)

func TestTheWatcherTellsWhenAGroupFills(t *testing.T) {
	t.Parallel()
	m := open(t, Config{})
	if m.watcher == nil {
		t.Skipf("needs cgroup v2, mode is %s", m.Mode())
	}
	g := acquire(t, m, job.Limits{})
	first, dropFirst, err := m.watcher.watch(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	second, dropSecond, err := m.watcher.watch(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	start(t, g, `sleep 300`)
	<-first
	<-second
	dropFirst()
	if len(m.watcher.subs) != 1 {
		t.Errorf("%d groups are watched, want 1 while one of two watches is left", len(m.watcher.subs))
	}
	dropSecond()
	if len(m.watcher.subs) != 0 {
		t.Errorf("%d groups are watched, want none", len(m.watcher.subs))
	}
}

func TestWatchingARemovedGroupIsAnError(t *testing.T) {
	t.Parallel()
	w, err := newWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if _, _, err := w.watch(t.TempDir()); err == nil {
		t.Error("a folder without cgroup.events was watched")
	}
}

func TestDeliverToleratesTornEvents(t *testing.T) {
	t.Parallel()
	w := &watcher{subs: map[int32]map[chan struct{}]bool{}}
	news := make(chan struct{}, 1)
	w.subs[7] = map[chan struct{}]bool{news: true}
	event := make([]byte, 16)
	event[0] = 7
	long := append([]byte{9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0}, make([]byte, 16)...)
	w.deliver(append(long, event...))
	select {
	case <-news:
	default:
		t.Error("an event after a longer one was missed")
	}
	w.deliver(event[:5])
	w.deliver(long[:20])
}
