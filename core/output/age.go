package output

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/durable"
)

// ageClock counts the time that has surely passed, over restarts of the worker
// and of its host (P14). Within one boot it goes by the clock of the kernel that
// nobody sets, also while no worker runs; from one boot to the next it stands
// still, because nothing but the wall clock knows how long that took. So output
// is kept for too long rather than too short.
type ageClock struct {
	path   string
	boot   string
	uptime func() time.Duration

	mu    sync.Mutex // guards the fields below
	base  time.Duration
	limit time.Duration // beyond which reach does not go; 0: none
}

// firstAge is where the clock begins: an end always has a time, and without one
// it was before.
const firstAge = time.Millisecond

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // it cannot fail (clock_gettime(2)); then nothing ages
	}
	return time.Duration(ts.Nano())
}

// openAge goes on where the file says. A file that cannot be understood begins
// anew: reach makes up for it.
func openAge(path, boot string, clock func() time.Duration) (*ageClock, error) {
	if clock == nil {
		clock = uptime
	}
	a := &ageClock{path: path, boot: boot, uptime: clock}
	now, age := clock(), firstAge
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var at, was time.Duration
	var of string
	if n, _ := fmt.Sscanf(string(raw), "age %d uptime %d boot %s\n", &was, &at, &of); n >= 2 && was > 0 {
		age = was
		a.limit = was + unsavedAge
		if of != "" && boot != "" && of == word(boot) {
			age += max(0, now-at)
		}
	}
	a.base = age - now
	return a, nil
}

// word is a boot id as Sscanf reads it.
func word(boot string) (w string) {
	_, _ = fmt.Sscan(boot, &w)
	return w
}

// now is the age of everything; it never goes back.
func (a *ageClock) now() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.base + a.uptime()
}

// unsavedAge is more than passes between two saves.
const unsavedAge = time.Hour

// reach sets the clock forward to a time that it must have had once: the host
// lost its power after that. A time that it cannot have had is of a bad disk.
func (a *ageClock) reach(then time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limit > 0 {
		then = min(then, a.limit)
	}
	a.base = max(a.base, then-a.uptime())
}

// save notes the time, whole or not at all.
func (a *ageClock) save() error {
	a.mu.Lock()
	now := a.uptime()
	text := fmt.Sprintf("age %d uptime %d boot %s\n", a.base+now, now, word(a.boot))
	a.mu.Unlock()
	if err := durable.Write(a.path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("note the age of output: %w", err)
	}
	return nil
}

// An END entry holds the policy in its lowest byte, which is all that the earliest
// versions read, and the milliseconds of ageClock above it. One bit says that the
// end may be missing.
const (
	endShift = 8
	cutFlag  = 1 << 61
	longest  = 1 << 43 // milliseconds
)

func packEnd(p job.OutputPolicy, ended time.Duration, cut bool) uint64 {
	v := uint64(p) | min(uint64(ended.Milliseconds()), longest)<<endShift
	if cut {
		v |= cutFlag
	}
	return v
}

func unpackEnd(v uint64) (p job.OutputPolicy, ended time.Duration, cut bool) {
	ms := v &^ cutFlag >> endShift
	return job.OutputPolicy(uint8(v)), time.Duration(min(ms, longest)) * time.Millisecond, v&cutFlag != 0
}
