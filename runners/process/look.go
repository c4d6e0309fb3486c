package process

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/runner"
)

// placeTrust is how long the place of an interpreter in a PATH is believed: a
// look costs a system call per folder, and thousands of jobs a second ask for
// the same one.
const placeTrust = time.Second

// finder finds executables in the PATH of jobs. Its methods may be called from
// any goroutine.
type finder struct {
	mu    sync.Mutex // guards known
	known map[wanted]place
}

// wanted is what a place depends on.
type wanted struct{ name, path, workdir string }

// place is where an executable was found, and when.
type place struct {
	file string
	at   time.Time
}

// find returns what to execute. A name with a slash is not looked at: the
// execution itself finds out. trusted tells that the place is from memory, and
// that a look may find another one.
func (f *finder) find(name string, env []string, workdir string) (file string, trusted bool, err error) {
	if name == "" {
		return "", false, &runner.StartError{Reason: runner.BadRequest, Message: "the command is empty"}
	}
	if strings.ContainsRune(name, '/') {
		return name, false, nil
	}
	w := wanted{name: name, path: pathOf(env), workdir: workdir}
	now := time.Now()
	f.mu.Lock()
	p, ok := f.known[w]
	f.mu.Unlock()
	if ok && now.Sub(p.at) < placeTrust {
		return p.file, true, nil
	}
	if file, err = lookPath(w); err != nil {
		return "", false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) >= 100 {
		f.known = map[wanted]place{}
	}
	f.known[w] = place{file, now}
	return file, false, nil
}

// forget makes the next find look again.
func (f *finder) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.known)
}

// pathOf is the PATH of a job.
func pathOf(env []string) string {
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	return path
}

// lookPath finds an executable in the job's own PATH.
func lookPath(w wanted) (string, error) {
	var denied error
	for _, dir := range filepath.SplitList(w.path) {
		if dir == "" {
			dir = "."
		}
		candidate := filepath.Join(dir, w.name)
		err := checkExecutable(candidate, w.workdir)
		if err == nil {
			return candidate, nil
		}
		if err.Reason == runner.NotExecutable {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("%q is not in the PATH %s", w.name, w.path)}
}

// checkExecutable tells why a file cannot be executed.
func checkExecutable(path, workdir string) *runner.StartError {
	if !filepath.IsAbs(path) {
		path = filepath.Join(workdir, path)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("execute %s: %v", path, err)}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Mode&0o111 == 0 {
		return &runner.StartError{Reason: runner.NotExecutable, Message: fmt.Sprintf("execute %s: it is not an executable file", path)}
	}
	return nil
}
