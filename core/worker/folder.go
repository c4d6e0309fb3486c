package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/plugins/foreign"
)

// Modes of what an attempt brings. Folders and files are the worker's own, so that no
// job changes what is in them or puts something else in its place; a job of another
// user reads them as a member of its primary group.
const (
	passMode   = 0o710 // of the way to what the job reads
	listMode   = 0o750 // of a folder that the job lists
	readMode   = 0o440 // of a file that the job reads
	secretMode = 0o400 // of a secret: it belongs to the job's user, who alone reads it
)

const (
	secretsFolder = "secrets"
	scriptFolder  = "script"
)

// attemptFolders holds what attempts have of their own: standard input, secrets, a
// script, a working folder. Most have nothing, and making a folder costs more than
// starting a process, so none is made without need.
type attemptFolders struct {
	stdin string // a file per attempt, which nobody but the worker reaches by its name
	root  string // a folder per attempt, with secrets and script: read by its job, and no more
	work  string // a folder per attempt that belongs to the job's user
	trash *trash
}

// makeAttemptFolders makes them below a worker's data folder; mode is that of the way
// to what jobs reach.
func makeAttemptFolders(data string, mode os.FileMode, log *slog.Logger) (attemptFolders, error) {
	f := attemptFolders{
		stdin: filepath.Join(data, "stdin"), root: filepath.Join(data, "attempts"), work: filepath.Join(data, "work"),
		trash: newTrash(filepath.Join(data, "trash"), log),
	}
	return f, errors.Join(
		makeFolder(f.stdin, 0o700), makeFolder(f.root, mode), makeFolder(f.work, mode), makeFolder(f.trash.dir, 0o700),
	)
}

// makeFolder makes a folder that has this mode, also when it is there already.
func makeFolder(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("set the mode of a data folder: %w", err)
	}
	return nil
}

// attemptFiles are the paths of what an attempt has of its own; "" for what there is
// not.
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
	// Left over from a crash before the intent: its content is not trusted.
	if err := f.discard(id); err != nil {
		return files, fmt.Errorf("clear attempt folder: %w", err)
	}
	w := fileWriter{uid: -1, gid: -1}
	if u != nil {
		w.uid, w.gid = int(u.cred.UID), int(u.cred.GID)
	}
	if len(spec.Stdin) > 0 {
		files.stdin = filepath.Join(f.stdin, id)
		w.write(files.stdin, spec.Stdin, -1, readMode)
	}
	dir := filepath.Join(f.root, id)
	if len(spec.Secrets)+len(spec.Upload) > 0 {
		w.mkdir(dir)
	}
	if len(spec.Secrets) > 0 {
		files.secrets = filepath.Join(dir, secretsFolder)
		w.mkdir(files.secrets)
		for name, value := range spec.Secrets {
			w.write(filepath.Join(files.secrets, name), value, w.uid, secretMode)
		}
		w.give(files.secrets, -1, listMode)
	}
	if len(spec.Upload) > 0 {
		files.script = f.script(id, spec.Path)
		w.mkdir(filepath.Dir(files.script))
		w.write(files.script, spec.Upload, -1, readMode)
		w.give(filepath.Dir(files.script), -1, listMode)
		w.mkdir(filepath.Join(f.work, id))
		w.give(filepath.Join(f.work, id), w.uid, 0o700)
	}
	if len(spec.Secrets)+len(spec.Upload) > 0 {
		w.admit(dir)
	}
	if w.err != nil {
		return attemptFiles{}, errors.Join(fmt.Errorf("write attempt folder: %w", w.err), f.discard(id))
	}
	return files, nil
}

// script is where a script that came with the order lies, alone in its folder.
func (f attemptFolders) script(id, name string) string {
	return filepath.Join(f.root, id, scriptFolder, name)
}

// uploadedPin stands for a script that came with the order. Its job begins in a folder
// of its own.
func (f attemptFolders) uploadedPin(id, name, sum string) *Pin {
	return &Pin{
		Path: f.script(id, name), Root: filepath.Join(f.work, id), Script: journal.Script{Name: name, SHA256: sum}, Release: func() {},
	}
}

// existingPin is uploadedPin for an attempt of an earlier life. Earlier versions of the
// worker made no working folder: then jobs begin beside the script.
func (f attemptFolders) existingPin(id string, s journal.Script) *Pin {
	pin := f.uploadedPin(id, s.Name, s.SHA256)
	if !exists(pin.Root) {
		pin.Root = filepath.Dir(pin.Path)
	}
	return pin
}

// existing returns what make has written for an attempt of an earlier life.
func (f attemptFolders) existing(id string) attemptFiles {
	var files attemptFiles
	// Earlier versions of the worker put standard input beside the secrets.
	for _, file := range []string{filepath.Join(f.root, id, "stdin"), filepath.Join(f.stdin, id)} {
		if exists(file) {
			files.stdin = file
		}
	}
	if dir := filepath.Join(f.root, id, secretsFolder); exists(dir) {
		files.secrets = dir
	}
	return files
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// discard removes what an attempt had; secrets do not outlive the attempt. What takes
// long is out of the way when it returns.
func (f attemptFolders) discard(id string) error {
	err := os.Remove(filepath.Join(f.stdin, id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.trash.take(filepath.Join(f.root, id)), f.trash.take(filepath.Join(f.work, id)))
}

// sweep discards all but what the named attempts have, left over by a crash. It
// removes no tree: that may take long.
func (f attemptFolders) sweep(keep map[string]bool) error {
	var bad []error
	for _, dir := range []string{f.stdin, f.root, f.work} {
		all, err := os.ReadDir(dir)
		if err != nil {
			bad = append(bad, fmt.Errorf("list attempt folders: %w", err))
		}
		for _, e := range all {
			if !keep[e.Name()] {
				_, err := f.trash.move(filepath.Join(dir, e.Name()))
				bad = append(bad, err)
			}
		}
	}
	return errors.Join(bad...)
}

// fileWriter makes files for a job; the first error sticks. All that it makes is the
// worker's own until it is complete, and lies where nobody else may write.
type fileWriter struct {
	uid, gid int // of the job; -1 is the worker's own user
	err      error
}

func (w *fileWriter) mkdir(dir string) {
	if w.err == nil {
		w.err = os.Mkdir(dir, 0o700)
	}
}

// write makes a file of an owner that the job's group has these rights on.
func (w *fileWriter) write(file string, data []byte, owner int, mode os.FileMode) {
	if w.err != nil {
		return
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		w.err = err
		return
	}
	_, err = f.Write(data)
	w.err = errors.Join(err, f.Close())
	w.give(file, owner, mode)
}

// give tells who a file belongs to, -1 is the worker itself, and what the job's group
// may do with it.
func (w *fileWriter) give(file string, owner int, mode os.FileMode) {
	if w.gid < 0 {
		mode &= 0o700 // the group is the worker's own: nobody is to come in by it
	} else if w.err == nil {
		w.err = os.Lchown(file, owner, w.gid)
	}
	if w.err == nil {
		w.err = os.Chmod(file, mode)
	}
}

// admit lets the job, and no other user, pass through a folder of the worker's.
func (w *fileWriter) admit(dir string) {
	if w.err != nil || w.uid < 0 {
		return
	}
	if w.err = foreign.Admit(dir, uint32(w.uid)); errors.Is(w.err, unix.ENOTSUP) {
		w.err = nil
		w.give(dir, -1, passMode)
	}
}

// fileName tells whether the name of a secret or an uploaded script is fit to be
// one file's.
func fileName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00")
}
