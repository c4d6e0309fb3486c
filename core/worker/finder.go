package worker

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// finderTrust is how long a place in PATH is believed. A search costs as much as
// the rest of a preparation, and thousands of jobs a second run the same command.
const finderTrust = time.Second

// finder looks commands up in PATH. Its methods may be called from any goroutine.
type finder struct {
	mu    sync.Mutex // guards known
	known map[string]place
}

// place is where a command was found, and when.
type place struct {
	file string
	at   time.Time
}

// find returns the absolute path of a command.
func (f *finder) find(command string) (string, error) {
	now := time.Now()
	f.mu.Lock()
	p, ok := f.known[command]
	f.mu.Unlock()
	if ok && now.Sub(p.at) < finderTrust {
		return p.file, nil
	}
	file, err := lookPath(command)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) > 1000 {
		f.known = make(map[string]place)
	}
	f.known[command] = place{file, now}
	return file, nil
}

// lookPath is exec.LookPath without the working folder of the worker.
func lookPath(command string) (string, error) {
	file, err := exec.LookPath(command)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(file) {
		return "", fmt.Errorf("%s lies in a relative folder of PATH", command)
	}
	return file, nil
}
