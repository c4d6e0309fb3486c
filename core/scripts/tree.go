package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/droverhq/drover/plugins/durable"
)

// tree is one generation of one folder: a folder of hard links to blobs, which
// nobody changes any more (P12). What is below the line is guarded by Library.mu.
type tree struct {
	Generation uint64
	Folder     string // name of the script folder
	Source     string
	Boot       string // id of the boot it was made in
	Files      map[string]file

	dir      string // of the generation; the links are in its folder named Folder
	pins     int
	surveyed bool // its index was lost: it is current for no folder
	held     bool // made by a former life, and not yet known to be needless
}

// root is the folder that stands for the source.
func (t *tree) root() string { return filepath.Join(t.dir, t.Folder) }

// signatures lists what the published files' sources looked like.
func (t *tree) signatures() map[string]signature {
	list := make(map[string]signature, len(t.Files))
	for name, f := range t.Files {
		list[name] = f.Sig
	}
	return list
}

// differs tells whether files publish anything else than t does.
func (t *tree) differs(files map[string]file) bool {
	if len(t.Files) != len(files) {
		return true
	}
	for name, f := range files {
		if old, ok := t.Files[name]; !ok || !old.same(f) {
			return true
		}
	}
	return false
}

const (
	indexFile  = ".drover-index.json"
	unfinished = ".new-"
)

// build makes a generation: links, then the index, then the name, so that what
// has its name is whole.
func (t *tree) build(dir string, b *blobs, folders map[string]signature) error {
	number := strconv.FormatUint(t.Generation, 10)
	work := filepath.Join(dir, unfinished+number)
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("clear way for generation: %w", err)
	}
	base := filepath.Join(work, t.Folder)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return fmt.Errorf("make generation: %w", err)
	}
	made := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(t.Files)) {
		if err := makeFolders(base, filepath.Dir(name), made); err != nil {
			return err
		}
		f, err := b.link(t.Files[name], filepath.Join(base, name))
		if err != nil {
			return err
		}
		t.Files[name] = f
	}
	if err := dress(base, made, folders); err != nil {
		return err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("describe generation: %w", err)
	}
	if err := durable.Write(filepath.Join(work, indexFile), text, 0o600); err != nil {
		return fmt.Errorf("describe generation: %w", err)
	}
	t.dir = filepath.Join(dir, number)
	if err := os.Rename(work, t.dir); err != nil {
		return fmt.Errorf("publish generation: %w", err)
	}
	return nil
}

func makeFolders(base, rel string, made map[string]bool) error {
	if made[rel] {
		return nil
	}
	if err := makeFolders(base, filepath.Dir(rel), made); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(base, rel), 0o755); err != nil {
		return fmt.Errorf("make folder of generation: %w", err)
	}
	made[rel] = true
	return nil
}

// dress gives the folders of a generation the rights of the sources, so that who
// could not read a script cannot read its copy, but never the right to write.
func dress(base string, made map[string]bool, folders map[string]signature) error {
	own := os.Geteuid() != 0
	for rel := range made {
		sig, ok := folders[rel]
		if !ok {
			continue
		}
		path := filepath.Join(base, rel)
		mode := os.FileMode(sig.Mode & 0o555)
		if own {
			mode |= 0o700 // a mere user could not remove it otherwise
		} else if err := os.Chown(path, int(sig.UID), int(sig.GID)); err != nil {
			return fmt.Errorf("give folder its owner: %w", err)
		}
		if err := os.Chmod(path, mode); err != nil {
			return fmt.Errorf("give folder its mode: %w", err)
		}
	}
	return nil
}

// remove takes a generation away.
func (t *tree) remove() error {
	// Its name goes first, so that half a generation is never found again.
	gone := filepath.Join(filepath.Dir(t.dir), unfinished+"gone-"+filepath.Base(t.dir))
	if err := os.Rename(t.dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove generation: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove generation: %w", err)
	}
	return nil
}

// load reads the generations that a former life left. What is of another boot is
// removed: nothing that ran in it lives, and a power loss may have torn it. One without
// a readable index is kept for the attempts that run in it (P12). It
// returns the highest number ever used, too.
func (l *Library) load(dir, boot string) (found []*tree, last uint64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("list generations: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		number, err := strconv.ParseUint(e.Name(), 10, 64)
		if err == nil {
			last = max(last, number)
			t, err := read(path)
			if err != nil || t.Generation != number {
				l.cfg.Log.Warn("the index of a generation cannot be read; it is kept for the jobs that run in it, and published anew", "path", filepath.Join(path, indexFile), "err", err)
				t, err = l.survey(path, number)
			}
			if err == nil && t.Boot == boot {
				t.dir, t.held = path, true
				found = append(found, t)
				continue
			}
		} else if !strings.HasPrefix(e.Name(), unfinished) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return nil, 0, fmt.Errorf("remove old generation: %w", err)
		}
	}
	slices.SortFunc(found, func(a, b *tree) int { return int(a.Generation) - int(b.Generation) })
	return found, last, nil
}

// survey describes a generation by what lies there.
func (l *Library) survey(dir string, number uint64) (*tree, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look through a generation: %w", err)
	}
	t := &tree{Generation: number, Boot: l.boot, surveyed: true, Files: map[string]file{}}
	for _, e := range entries {
		if i := slices.IndexFunc(l.folders, func(f *folder) bool { return f.name == e.Name() }); i >= 0 {
			t.Folder, t.Source = e.Name(), l.folders[i].source
		}
	}
	if t.Folder == "" {
		return nil, fmt.Errorf("look through a generation: %s holds no folder of scripts", dir)
	}
	base := filepath.Join(dir, t.Folder)
	err = filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(base, path)
		if err != nil {
			return err
		}
		t.Files[name], err = surveyFile(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look through a generation: %w", err)
	}
	return t, nil
}

func surveyFile(path string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return file{}, err
	}
	sig := signatureOf(info)
	return file{Sig: signature{Size: sig.Size}, SHA256: hex.EncodeToString(sum.Sum(nil)), Ino: sig.Ino, Modified: sig.Modified}, nil
}

func read(dir string) (*tree, error) {
	text, err := os.ReadFile(filepath.Join(dir, indexFile))
	if err != nil {
		return nil, fmt.Errorf("read generation: %w", err)
	}
	t := &tree{}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("read generation: %w", err)
	}
	return t, nil
}
