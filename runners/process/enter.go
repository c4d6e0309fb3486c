package process

import (
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/runner"
)

// enterPatience is how long the file system of a working folder may take.
const enterPatience = 5 * time.Second

// user is who a job runs as, for looks at files; nil is this process's own user.
func user(s runner.Spec) *foreign.User {
	if s.Credential == nil {
		return nil
	}
	u := foreign.User(*s.Credential)
	return &u
}

// begin has a process forked in its working folder. One that the request named may lie
// on a file system that never answers. A child must not be the one to find out: while it
// has not executed its program, no other process of this one can be forked. So a thread
// with the rights of the job's user goes there first, and the child inherits its place.
// The worker has compared the path with its policy: no link that was put there since is
// followed. do is called once with the fork, unless the folder cannot be entered.
func (r *Runner) begin(path string, argv []string, attr *syscall.ProcAttr, s runner.Spec, do func(fork func() (int, error))) error {
	x := restrictionsOf(s)
	if !s.WorkdirAsked {
		do(func() (int, error) { return forkInto(path, argv, attr, x) })
		return nil
	}
	there := *attr
	var folder *os.File // a look that is given up leaves it to the collector
	err := r.looks.Do(user(s), enterPatience, func() error {
		f, err := foreign.OpenFolder(s.Workdir)
		if err != nil {
			return err
		}
		folder = f
		if unix.Unshare(unix.CLONE_FS) == nil {
			there.Dir = ""
			return f.Chdir()
		}
		there.Dir = inChild(f) // containers often forbid a thread to have a place of its own
		return nil
	}, func() {
		// Not before: the reaper waits for who has announced a fork.
		do(func() (int, error) { return x.fork(path, argv, &there) })
		_ = folder.Close() // nothing was written to it
	})
	if err != nil {
		return badFolder(s, err)
	}
	return nil
}

// inChild names an open folder for a child of this process that has executed nothing yet.
func inChild(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func badFolder(s runner.Spec, err error) error {
	return &runner.StartError{Reason: runner.BadRequest, Message: "working folder " + s.Workdir + ": " + err.Error()}
}

// whyNot looks, with the rights of the job's user, for what keeps a program from being
// executed in a working folder; nil when that cannot be seen.
func (r *Runner) whyNot(path string, s runner.Spec) error {
	return r.looks.Do(user(s), enterPatience, func() error {
		if s.Workdir != "" {
			if _, err := foreign.Folder(s.Workdir); err != nil {
				return badFolder(s, err)
			}
		}
		if bad := checkExecutable(path); bad != nil {
			return bad
		}
		return nil
	}, nil)
}
