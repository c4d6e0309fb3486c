package cgroup

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher tells when the population of v2 groups changes: the kernel reports
// each change of cgroup.events to inotify (Documentation/admin-guide/cgroup-v2.rst).
// One goroutine serves all stops, so that thousands at a time need no threads.
type watcher struct {
	file *os.File // owns fd
	done chan struct{}

	mu   sync.Mutex // guards what follows and adding and removing watches, which do not block
	fd   int        // -1 once it is closed
	subs map[int32]map[chan struct{}]bool
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	w := &watcher{
		fd: fd, file: os.NewFile(uintptr(fd), "inotify"),
		done: make(chan struct{}), subs: map[int32]map[chan struct{}]bool{},
	}
	go w.run()
	return w, nil
}

// watch returns a channel that gets a value after each change in dir, coalesced.
func (w *watcher) watch(dir string) (<-chan struct{}, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := unix.InotifyAddWatch(w.fd, filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY)
	if err != nil {
		return nil, nil, fmt.Errorf("watch cgroup: %w", err)
	}
	wd := int32(n)
	news := make(chan struct{}, 1)
	if w.subs[wd] == nil {
		w.subs[wd] = map[chan struct{}]bool{}
	}
	w.subs[wd][news] = true
	return news, func() { w.drop(wd, news) }, nil
}

func (w *watcher) drop(wd int32, news chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.subs[wd], news)
	if len(w.subs[wd]) == 0 {
		delete(w.subs, wd)
		if w.fd >= 0 {
			// EINVAL once the cgroup is gone, and the watch with it.
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
		}
	}
}

// run passes on what the kernel says until close.
func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		w.deliver(buf[:n])
	}
}

// deliver reads events (inotify(7)): number, mask, cookie, length of a name, name.
func (w *watcher) deliver(events []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		name := int(binary.NativeEndian.Uint32(events[12:]))
		for news := range w.subs[wd] {
			select {
			case news <- struct{}{}:
			default:
			}
		}
		events = events[min(len(events), unix.SizeofInotifyEvent+name):]
	}
}

// close ends run and waits for it. Polling takes over for stops under way.
func (w *watcher) close() {
	w.mu.Lock()
	w.fd = -1 // another file may have its number soon
	w.mu.Unlock()
	w.file.Close()
	<-w.done
}
