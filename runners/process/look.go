package process

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/droverhq/drover/plugins/runner"
)

// find returns what to execute: an absolute path as it is, a name looked up in path,
// which is the PATH of this process. That of the job is never asked: a request may
// have set it, and must not choose what runs. Relative folders in path are passed
// over for the same reason, for a request chooses the working folder.
func find(name, path string) (string, error) {
	switch {
	case name == "":
		return "", &runner.StartError{Reason: runner.BadRequest, Message: "the command is empty"}
	case filepath.IsAbs(name):
		return name, nil // the execution finds out what it is
	case strings.ContainsRune(name, '/'):
		return "", &runner.StartError{Reason: runner.BadRequest, Message: fmt.Sprintf("the command %q is a relative path", name)}
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		candidate := filepath.Join(dir, name)
		err := checkExecutable(candidate)
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
	return "", &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("%q is not in the worker's PATH %s", name, path)}
}

// checkExecutable tells why a file cannot be executed.
func checkExecutable(path string) *runner.StartError {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); errors.Is(err, syscall.EACCES) {
		return &runner.StartError{Reason: runner.NotExecutable, Message: fmt.Sprintf("execute %s: %v", path, err)}
	} else if err != nil {
		return &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("execute %s: %v", path, err)}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Mode&0o111 == 0 {
		return &runner.StartError{Reason: runner.NotExecutable, Message: fmt.Sprintf("execute %s: it is not an executable file", path)}
	}
	return nil
}
