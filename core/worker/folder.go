package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

const (
	stdinFile     = "stdin"
	secretsFolder = "secrets"
	scriptFolder  = "script"
)

// attemptFolders holds one folder per attempt that has standard input, secrets
// or a script of its own. Most have none, and making a folder costs more than starting a
// process (architecture.md, section 6), so none is made without need.
type attemptFolders struct{ root string }

func (f attemptFolders) path(id string) string { return filepath.Join(f.root, id) }

// attemptFiles are the paths of what an attempt brought with it; "" for what
// there is not.
type attemptFiles struct {
	stdin   string
	secrets string // a folder
	script  string
}

// make writes what the order brought, readable by the job's user only.
func (f attemptFolders) make(id string, spec *job.Spec, u *account) (attemptFiles, error) {
	var files attemptFiles
	if len(spec.Stdin) == 0 && len(spec.Secrets) == 0 && len(spec.Upload) == 0 {
		return files, nil
	}
	dir := f.path(id)
	// Left over from a crash before the intent: its content is not trusted.
	if err := os.RemoveAll(dir); err != nil {
		return files, fmt.Errorf("clear attempt folder: %w", err)
	}
	w := fileWriter{owner: u}
	w.mkdir(dir)
	if len(spec.Stdin) > 0 {
		files.stdin = filepath.Join(dir, stdinFile)
		w.write(files.stdin, spec.Stdin)
	}
	if len(spec.Secrets) > 0 {
		files.secrets = filepath.Join(dir, secretsFolder)
		w.mkdir(files.secrets)
		for name, value := range spec.Secrets {
			w.write(filepath.Join(files.secrets, name), value)
		}
	}
	if len(spec.Upload) > 0 {
		w.mkdir(filepath.Join(dir, scriptFolder))
		files.script = f.script(id, spec.Path)
		w.write(files.script, spec.Upload)
	}
	if w.err != nil {
		return attemptFiles{}, errors.Join(fmt.Errorf("write attempt folder: %w", w.err), os.RemoveAll(dir))
	}
	return files, nil
}

// script is where a script that came with the order lies. It is alone in its
// folder, which is where the job begins.
func (f attemptFolders) script(id, name string) string {
	return filepath.Join(f.path(id), scriptFolder, name)
}

// uploadedPin stands for a script that nobody else can change.
func uploadedPin(file, sum string) *Pin {
	return &Pin{
		Path: file, Root: filepath.Dir(file), Script: journal.Script{Name: filepath.Base(file), SHA256: sum}, Release: func() {},
	}
}

// existing returns what make has written for an attempt of an earlier life.
func (f attemptFolders) existing(id string) attemptFiles {
	files := attemptFiles{stdin: filepath.Join(f.path(id), stdinFile), secrets: filepath.Join(f.path(id), secretsFolder)}
	if _, err := os.Stat(files.stdin); err != nil {
		files.stdin = ""
	}
	if _, err := os.Stat(files.secrets); err != nil {
		files.secrets = ""
	}
	return files
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

// fileName tells whether the name of a secret or an uploaded script is fit to be
// one file's.
func fileName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00")
}
