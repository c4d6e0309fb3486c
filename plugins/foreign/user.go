// Package foreign does file work where other users act at the same time: it opens
// nothing but what it expects, looks with the rights of another user only, and
// removes trees that somebody may still be writing to.
package foreign

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// User is who to act as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// ErrNoAnswer is the error of a look at a file system that does not answer, such as
// a network file system whose server is gone.
var ErrNoAnswer = errors.New("the file system does not answer")

// How many looks of a Looks may hang at once, with the rights of one user and in all.
// Each keeps a thread until the kernel lets go of it.
const (
	mostHungOfOne = 4
	mostHung      = 64
)

// Looks bounds what waits for file systems that do not answer. The zero value
// works; its method may be called from any goroutine.
type Looks struct {
	mu   sync.Mutex  // guards the fields below
	hung map[int]int // looks that hang, by user
	all  int
}

// full tells whether no look of a user may hang any more. What a user has mounted so
// that it never answers keeps out that user alone, and not those who look elsewhere.
func (l *Looks) full(uid int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hung[uid] >= mostHungOfOne || l.all >= mostHung
}

// count adds looks of a user that hang, or takes them away.
func (l *Looks) count(uid, looks int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hung == nil {
		l.hung = map[int]int{}
	}
	l.all += looks
	if l.hung[uid] += looks; l.hung[uid] == 0 {
		delete(l.hung, uid)
	}
}

// Do runs look with the rights on files that u has, and then, if that went well in
// time, the function then with the rights that this process has. Both run on one
// thread that nothing else runs on, before or after: look may change what belongs to
// its thread, such as the working folder. After patience Do returns ErrNoAnswer and
// look is left alone; then is not run any more. u nil is this process's own user.
func (l *Looks) Do(u *User, patience time.Duration, look func() error, then func()) error {
	uid := os.Geteuid()
	if u.other() {
		uid = int(u.UID)
	}
	if l.full(uid) {
		return fmt.Errorf("%w, and nor do others that were asked before", ErrNoAnswer)
	}
	var (
		decided atomic.Bool
		looked  = make(chan error, 1)
		done    = make(chan struct{})
	)
	// Nothing interrupts a system call that a file system does not answer, so nobody
	// can wait for this goroutine once it is late.
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, on purpose: the thread ends here
		err := as(u, look)
		if !decided.CompareAndSwap(false, true) {
			l.count(uid, -1)
			return
		}
		looked <- err
		if err == nil && then != nil {
			then()
		}
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-looked:
		<-done
		return err
	case <-late.C:
	}
	l.count(uid, 1)
	if decided.CompareAndSwap(false, true) {
		return ErrNoAnswer
	}
	l.count(uid, -1)
	err := <-looked // it was in time after all
	<-done
	return err
}

// As runs f with the rights on files that u has, and waits for it. Only root can act
// as others; anybody else stays who he is.
func As(u *User, f func() error) error {
	if !u.other() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, on purpose: the thread ends here
		done <- as(u, f)
	}()
	return <-done
}

// other tells whether u is somebody else whom this process can act as.
func (u *User) other() bool {
	return u != nil && os.Geteuid() == 0 && u.UID != 0
}

// as changes the rights of this thread for the time of f. A thread whose user for
// file systems is not root has lost the capabilities to pass by permissions
// (capabilities(7), "Effect of user ID changes on capabilities").
func as(u *User, f func() error) error {
	if !u.other() {
		return f()
	}
	groups, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("read the groups: %w", err)
	}
	theirs := make([]int, len(u.Groups))
	for i, g := range u.Groups {
		theirs[i] = int(g)
	}
	dumpable()
	err = become(theirs, int(u.GID), int(u.UID))
	if err == nil {
		err = f()
	}
	return errors.Join(err, become(groups, os.Getegid(), os.Geteuid()))
}

// become changes the ids that the kernel compares with those of files, on this
// thread alone. The calls for the ids report no errors: they are asked what they are.
func become(groups []int, gid, uid int) error {
	if err := unix.Setgroups(groups); err != nil {
		return fmt.Errorf("act with the groups of another user: %w", err)
	}
	for _, set := range []struct {
		call func(int) (int, error)
		id   int
	}{{unix.SetfsgidRetGid, gid}, {unix.SetfsuidRetUid, uid}} {
		_, _ = set.call(set.id)
		if now, err := set.call(-1); err != nil || now != set.id {
			return fmt.Errorf("act as user %d, group %d: not permitted", uid, gid)
		}
	}
	// A change of the user hides the whole process from those who read /proc with
	// the rights that it has itself.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable()), 0, 0, 0); err != nil {
		return fmt.Errorf("keep the process readable: %w", err)
	}
	return nil
}

// dumpable is what this process was before it acted as somebody else.
var dumpable = sync.OnceValue(func() int {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || was > 1 { // 2 cannot be set, see prctl(2)
		return 0
	}
	return was
})
