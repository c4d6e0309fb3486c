package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/droverhq/drover/core/job"
)

const (
	stdinFile     = "stdin"
	secretsFolder = "secrets"
)

// attemptFolders holds one folder per attempt that has standard input or
// secrets. Most have none, and making a folder costs more than starting a
// process (architecture.md, section 6), so none is made without need.
type attemptFolders struct{ root string }

func (f attemptFolders) path(id string) string { return filepath.Join(f.root, id) }

// make writes stdin and secrets, readable by the job's user only, and returns
// their paths; "" for what there is not.
func (f attemptFolders) make(id string, spec *job.Spec, u *account) (stdin, secrets string, err error) {
	if len(spec.Stdin) == 0 && len(spec.Secrets) == 0 {
		return "", "", nil
	}
	dir := f.path(id)
	// Left over from a crash before the intent: its content is not trusted.
	if err := os.RemoveAll(dir); err != nil {
		return "", "", fmt.Errorf("clear attempt folder: %w", err)
	}
	w := fileWriter{owner: u}
	w.mkdir(dir)
	if len(spec.Stdin) > 0 {
		stdin = filepath.Join(dir, stdinFile)
		w.write(stdin, spec.Stdin)
	}
	if len(spec.Secrets) > 0 {
		secrets = filepath.Join(dir, secretsFolder)
		w.mkdir(secrets)
		for name, value := range spec.Secrets {
			w.write(filepath.Join(secrets, name), value)
		}
	}
	if w.err != nil {
		return "", "", errors.Join(fmt.Errorf("write attempt folder: %w", w.err), os.RemoveAll(dir))
	}
	return stdin, secrets, nil
}

// existing returns what make has written for an attempt of an earlier life.
func (f attemptFolders) existing(id string) (stdin, secrets string) {
	stdin, secrets = filepath.Join(f.path(id), stdinFile), filepath.Join(f.path(id), secretsFolder)
	if _, err := os.Stat(stdin); err != nil {
		stdin = ""
	}
	if _, err := os.Stat(secrets); err != nil {
		secrets = ""
	}
	return stdin, secrets
}

// remove deletes an attempt's folder; secrets do not outlive the attempt.
func (f attemptFolders) remove(id string) error { return os.RemoveAll(f.path(id)) }

// sweep removes every folder but those named, left over by a crash.
func (f attemptFolders) sweep(keep map[string]bool) error {
	all, err := os.ReadDir(f.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attempt folders: %w", err)
	}
	var bad []error
	for _, e := range all {
		if !keep[e.Name()] {
			bad = append(bad, f.remove(e.Name()))
		}
	}
	return errors.Join(bad...)
}

// fileWriter makes private files; the first error sticks.
type fileWriter struct {
	owner *account
	err   error
}

func (w *fileWriter) mkdir(dir string) {
	if w.err == nil {
		w.err = os.Mkdir(dir, 0o700)
	}
	w.own(dir)
}

func (w *fileWriter) write(file string, data []byte) {
	if w.err == nil {
		w.err = os.WriteFile(file, data, 0o600)
	}
	w.own(file)
}

func (w *fileWriter) own(file string) {
	if w.err == nil && w.owner != nil {
		w.err = os.Lchown(file, int(w.owner.cred.UID), int(w.owner.cred.GID))
	}
}

// secretName tells whether a secret's name is fit to be a file name.
func secretName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00")
}
