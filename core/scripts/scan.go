package scripts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	deepest   = 64      // folders in folders; more is taken for a mistake
	mostFiles = 100_000 // files of one folder
)

// signature tells versions of a file apart without reading it. The change time is
// in it because nobody can set that.
type signature struct {
	Dev, Ino          uint64
	Size              int64
	Modified, Changed int64 // ns since 1970
	Mode              uint32
	UID, GID          uint32
}

// signatureOf reads a signature. Infos of package os always hold a Stat_t.
func signatureOf(info fs.FileInfo) signature {
	st := info.Sys().(*syscall.Stat_t)
	return signature{
		Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano(),
	}
}

// identity is what a folder is, as against what it is called.
type identity struct{ dev, ino uint64 }

func (s signature) identity() identity { return identity{s.Dev, s.Ino} }

// listing is what a folder holds at one look.
type listing struct {
	root    *os.Root             // open until close, for copies of just these files
	files   map[string]signature // by path below the folder
	refused map[string]string    // what is not published, and why
	folders map[string]signature // "." is the folder itself
}

func (l *listing) close() {
	if l.root != nil {
		_ = l.root.Close()
	}
}

// scanner looks through one folder. It never leaves it: every step goes through
// os.Root, which refuses symbolic links that lead out (P13).
type scanner struct {
	source  string
	maxSize int64
	// visit is told of each folder before it is read, so that a watch set there
	// misses nothing that the reading missed.
	visit func(dir string, id identity)
	out   listing
}

// scan lists a folder. A folder that does not exist is empty.
func scan(source string, maxSize int64, visit func(string, identity)) (listing, error) {
	s := &scanner{source: source, maxSize: maxSize, visit: visit, out: listing{
		files: map[string]signature{}, refused: map[string]string{}, folders: map[string]signature{},
	}}
	root, err := os.OpenRoot(source)
	if errors.Is(err, fs.ErrNotExist) {
		return s.out, nil
	}
	if err != nil {
		return s.out, fmt.Errorf("open script folder: %w", err)
	}
	s.out.root = root
	if err := s.folder(root, ".", nil); err != nil {
		_ = root.Close()
		return listing{}, err
	}
	return s.out, nil
}

// folder lists dir, whose path below the source is rel.
func (s *scanner) folder(dir *os.Root, rel string, above []identity) error {
	info, err := dir.Stat(".")
	if err != nil {
		return s.torn(rel, err)
	}
	sig := signatureOf(info)
	for _, id := range above {
		if id == sig.identity() {
			s.out.refused[rel] = "is a symbolic link to a folder above it"
			return nil
		}
	}
	if len(above) >= deepest {
		s.out.refused[rel] = fmt.Sprintf("is more than %d folders deep", deepest)
		return nil
	}
	s.out.folders[rel] = sig
	s.visit(path.Join(s.source, rel), sig.identity())
	f, err := dir.Open(".")
	if err != nil {
		return s.torn(rel, err)
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return s.torn(rel, err)
	}
	above = append(above, sig.identity())
	for _, name := range names {
		if len(s.out.files) >= mostFiles {
			s.out.refused[rel] = fmt.Sprintf("holds more than %d files", mostFiles)
			return nil
		}
		if err := s.entry(dir, name, path.Join(rel, name), above); err != nil {
			return err
		}
	}
	return nil
}

// torn says what to do about a folder that cannot be read: one that went while it
// was looked at is not there, another is not published. The source itself must be
// readable.
func (s *scanner) torn(rel string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && rel != ".":
		return nil
	case rel == ".":
		return fmt.Errorf("read script folder: %w", err)
	}
	s.out.refused[rel] = "cannot be read: " + reason(err)
	return nil
}

func (s *scanner) entry(dir *os.Root, name, rel string, above []identity) error {
	if hidden(name) {
		return nil
	}
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went meanwhile
	}
	if err != nil {
		s.out.refused[rel] = why(err)
		return nil
	}
	from := dir
	if info.Mode()&fs.ModeSymlink != 0 {
		if info, err = s.out.root.Stat(rel); err != nil {
			s.out.refused[rel] = why(err)
			return nil
		}
		from, name = s.out.root, rel
	}
	if info.IsDir() {
		return s.descend(from, name, rel, above)
	}
	s.file(rel, info)
	return nil
}

func (s *scanner) descend(from *os.Root, name, rel string, above []identity) error {
	sub, err := from.OpenRoot(name)
	if err != nil {
		return s.torn(rel, err)
	}
	defer func() { _ = sub.Close() }()
	return s.folder(sub, rel, above)
}

func (s *scanner) file(rel string, info fs.FileInfo) {
	if what := unfit(info, s.maxSize); what != "" {
		s.out.refused[rel] = what
		return
	}
	s.out.files[rel] = signatureOf(info)
}

// hidden names folders of version control, which are never scripts and large.
func hidden(name string) bool { return name == ".git" || name == ".hg" || name == ".svn" }

// unfit says why something is not published, or nothing.
func unfit(info fs.FileInfo, maxSize int64) string {
	switch mode := info.Mode(); {
	case mode.IsRegular() && info.Size() > maxSize:
		return fmt.Sprintf("has %d bytes, more than the %d that are published", info.Size(), maxSize)
	case mode.IsRegular():
		return ""
	case mode.IsDir():
		return "is a folder"
	case mode&fs.ModeNamedPipe != 0:
		return "is a named pipe"
	case mode&fs.ModeSocket != 0:
		return "is a socket"
	case mode&fs.ModeDevice != 0:
		return "is a device"
	case mode&fs.ModeSymlink != 0:
		return "is a symbolic link"
	}
	return "is not a regular file"
}

// why turns the error of a path into words that follow the path.
func why(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is a symbolic link to nothing"
	case errors.Is(err, unix.ELOOP):
		return "is a symbolic link that leads in a circle"
	case escapes(err):
		return "leads out of its script folder by a symbolic link"
	}
	return "cannot be read: " + reason(err)
}

// escapes knows the error by which os.Root refuses to leave its folder; package os
// exports no value for it.
func escapes(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p) && p.Err.Error() == "path escapes from parent"
}

// reason is the last cause of an error, without paths that the request names anyway.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
