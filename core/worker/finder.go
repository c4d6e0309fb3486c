package worker

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/droverhq/drover/plugins/foreign"
)

// finderTrust is how long a place in PATH is believed. A search costs as much as
// the rest of a preparation, and thousands of jobs a second run the same command.
const finderTrust = time.Second

// finder looks commands up in a PATH of the worker's choice, never in one of a
// request, and with the rights of who is to run them. Its methods may be called from
// any goroutine.
type finder struct {
	looks foreign.Looks

	mu    sync.Mutex // guards known
	known map[wanted]place
}

// wanted is what a place depends on.
type wanted struct {
	user          string // "" is the worker's own
	path, command string
}

// place is where a command was found, and when.
type place struct {
	file string
	at   time.Time
}

// find returns the absolute path of a command that u can execute.
func (f *finder) find(u *account, path, command string) (string, error) {
	now, w := time.Now(), wanted{path: path, command: command}
	if u != nil {
		w.user = u.name
	}
	f.mu.Lock()
	p, ok := f.known[w]
	f.mu.Unlock()
	if ok && now.Sub(p.at) < finderTrust {
		return p.file, nil
	}
	found := make(chan string, 1)
	err := f.looks.Do(u.user(), lookPatience, func() error {
		file, err := lookPath(path, command)
		found <- file
		return err
	}, nil)
	if err != nil {
		return "", err
	}
	file := <-found
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) > 1000 {
		f.known = make(map[wanted]place)
	}
	f.known[w] = place{file, now}
	return file, nil
}

// lookPath is exec.LookPath with a PATH that is given, without its relative folders.
func lookPath(path, command string) (string, error) {
	if strings.Contains(command, "/") {
		if !filepath.IsAbs(command) {
			return "", fmt.Errorf("%q is a relative path", command)
		}
		return exec.LookPath(command)
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) || command == "" {
			continue
		}
		if file, err := exec.LookPath(filepath.Join(dir, command)); err == nil {
			return file, nil
		}
	}
	return "", &exec.Error{Name: command, Err: exec.ErrNotFound}
}
