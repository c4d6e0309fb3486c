package output

import (
	"context"
	"time"
)

// Many followers of one stream are not woken for every line: waking each of them
// costs more than the line does, on the cores that its job runs on. They gather,
// and go on together. A few are woken at once, and so are any that have not been
// given something for so long.
const (
	fewFollowers  = 8
	perFollower   = time.Millisecond
	longestGather = 100 * time.Millisecond
	gathered      = 64 << 10 // bytes with which nobody waits for more
)

// gatherTime is how long so many followers gather.
func gatherTime(followers int) time.Duration {
	if followers <= fewFollowers {
		return 0
	}
	return min(time.Duration(followers)*perFollower, longestGather)
}

// gather waits until there is more to read than a few lines, if many follow. It
// waits to a tick that all share, so that they are woken with one timer.
func (r *Reader) gather(ctx context.Context) {
	wait, plenty := r.mayGather()
	if wait <= 0 {
		return
	}
	wait -= time.Since(r.store.began) % wait
	if r.timer == nil {
		r.timer = time.NewTimer(wait)
	} else {
		r.timer.Reset(wait)
	}
	select {
	case <-r.timer.C:
	case <-plenty[0]:
	case <-plenty[1]:
	case <-ctx.Done():
	}
	r.timer.Stop()
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	for _, c := range r.cursors {
		c.round = c.st.size
	}
}

// mayGather tells for how long, and the channels that say that it is enough. Zero
// is not at all.
func (r *Reader) mayGather() (wait time.Duration, plenty [2]<-chan struct{}) {
	s := r.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range r.cursors {
		if c.st.owner.finished || c.off < c.round || c.st.size >= c.off+gathered {
			return 0, plenty
		}
		wait = max(wait, s.config.pace(c.st.readers))
	}
	if wait <= 0 {
		return 0, plenty
	}
	for i, c := range r.cursors {
		// What came before anybody gathered counts, too.
		if c.st.plenty == nil {
			c.st.plenty, c.st.enough = make(chan struct{}), c.off+gathered
		}
		c.st.enough = min(c.st.enough, c.off+gathered)
		plenty[i] = c.st.plenty
	}
	return wait, plenty
}
