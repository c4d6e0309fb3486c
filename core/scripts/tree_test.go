package scripts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
)

func blobCount(t testing.TB, l *Library) int {
	t.Helper()
	entries, err := os.ReadDir(l.blobs.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// lookAll looks until everything has settled, without Run.
func lookAll(t testing.TB, l *Library) {
	t.Helper()
	until(t, "the folder to settle", func() bool { return !l.look(func(string, identity) {}) })
	l.collect()
}

func TestEqualContentIsKeptOnce(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "same", "b/c.sh", "same", "d.sh", "other")
	l := open(t, Config{Folders: []string{dir}})
	if n := blobCount(t, l); n != 2 {
		t.Errorf("%d blobs, want 2", n)
	}
	// The mode is the link's, too: one content, two modes, two blobs.
	if err := os.Chmod(filepath.Join(dir, "a.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	lookAll(t, l)
	if n := blobCount(t, l); n != 3 {
		t.Errorf("%d blobs, want 3", n)
	}
}

func TestALookWithoutAChangeMakesNoGeneration(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a", "b.sh", "b")
	l := open(t, Config{Folders: []string{dir}})
	lookAll(t, l)
	lookAll(t, l)
	// A touch changes no content; the file is read again, and that is all.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "a.sh"), later, later); err != nil {
		t.Fatal(err)
	}
	lookAll(t, l)
	if g := l.Index().Generation; g != 1 || !slices.Equal(generations(t, l), []string{"1"}) {
		t.Errorf("generation %d, on disk %v", g, generations(t, l))
	}
	p := pin(t, l, "a.sh") // and it is fresh, without Run
	p.Release()
}

// P12: a pin holds its generation; what nobody holds is removed.
func TestAPinHoldsItsGeneration(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "0", "same.sh", "same")
	l := open(t, Config{Folders: []string{dir}})
	first := pin(t, l, "a.sh")
	again := pin(t, l, "same.sh")
	for i := range 3 {
		write(t, dir, "a.sh", fmt.Sprint(i+1, " more"))
		lookAll(t, l)
	}
	if got := generations(t, l); !slices.Equal(got, []string{"1", "4"}) {
		t.Errorf("on disk %v, want the pinned and the current", got)
	}
	if text := content(t, first.Path); text != "0" {
		t.Errorf("the pinned version is %q", text)
	}
	first.Release()
	first.Release() // does nothing
	l.collect()
	if content(t, again.Path) != "same" {
		t.Error("one of two pins was let go, and the generation went")
	}
	again.Release()
	l.collect()
	if got := generations(t, l); !slices.Equal(got, []string{"4"}) || blobCount(t, l) != 2 {
		t.Errorf("on disk %v, %d blobs", got, blobCount(t, l))
	}
}

// P7: after a restart the attempts that live find their generation.
func TestGenerationsOutliveARestart(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "old", "b.sh", "b")
	cfg := Config{Folders: []string{dir}, Dir: t.TempDir()}
	before := open(t, cfg)
	held := pin(t, before, "a.sh")
	write(t, dir, "a.sh", "newer")
	lookAll(t, before)
	write(t, dir, "a.sh", "newest")

	l := open(t, cfg)
	if got := generations(t, l); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("on disk %v, want both former generations and the new one", got)
	}
	p, err := l.PinGeneration(held.Generation, held.Folder, held.Name)
	if err != nil || p.Path != held.Path || p.SHA256 != held.SHA256 || p.Source != held.Source || content(t, p.Path) != "old" {
		t.Fatalf("got %+v, %v, want %+v", p, err, held)
	}
	l.Retain([]uint64{2})
	l.collect()
	if got := generations(t, l); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("on disk %v: one is pinned, one retained, one current", got)
	}
	l.Retain(nil)
	l.collect()
	if got := generations(t, l); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("on disk %v, want the pinned and the current", got)
	}
	p.Release()
	l.collect()
	if got := generations(t, l); !slices.Equal(got, []string{"3"}) {
		t.Errorf("on disk %v, want the current", got)
	}
	for _, c := range []struct {
		generation   uint64
		folder, name string
	}{{1, "scripts", "a.sh"}, {3, "other", "a.sh"}, {3, "scripts", "none"}, {99, "scripts", "a.sh"}} {
		if _, err := l.PinGeneration(c.generation, c.folder, c.name); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%v: %v, want NotFound", c, err)
		}
	}
}

// TestP12_IndexOfAGenerationIsDamaged_ItsJobsKeepTheirScripts: the generation was removed
// under them.
func TestP12_IndexOfAGenerationIsDamaged_ItsJobsKeepTheirScripts(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"half":    func(p string) error { return os.Truncate(p, 50) },
		"garbage": func(p string) error { return os.WriteFile(p, []byte("\xa5\xa5"), 0o600) },
		"missing": os.Remove,
		"folder":  func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
	} {
		dir := folderWith(t, "a.sh", "old", "b/c.sh", "sourced")
		cfg := Config{Folders: []string{dir}, Dir: t.TempDir()}
		before := open(t, cfg)
		held := pin(t, before, "a.sh")
		if err := damage(filepath.Join(held.Root, "..", indexFile)); err != nil {
			t.Fatal(err)
		}
		l := open(t, cfg)
		p, err := l.PinGeneration(held.Generation, held.Folder, held.Name)
		if err != nil || p.Path != held.Path || p.SHA256 != held.SHA256 || p.Source != held.Source || content(t, p.Path) != "old" {
			t.Fatalf("%s: got %+v, %v, want %+v", name, p, err, held)
		}
		l.Retain(nil)
		l.collect()
		if got := content(t, filepath.Join(held.Root, "b/c.sh")); got != "sourced" {
			t.Errorf("%s: what it sources is %q", name, got)
		}
		p.Release()
		l.collect()
		if got := generations(t, l); !slices.Equal(got, []string{"2"}) {
			t.Errorf("%s: on disk %v, want what was published anew", name, got)
		}
	}
}

func TestARestartWithoutAChangeReadsNothingAnew(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a", "b/c.sh", "c")
	cfg := Config{Folders: []string{dir}, Dir: t.TempDir()}
	before := open(t, cfg).Index()
	after := open(t, cfg).Index()
	if after.Generation != before.Generation || !slices.Equal(after.Scripts, before.Scripts) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// After a power loss copies may be torn, and nothing that used them lives.
func TestAnotherBootStartsFromTheSources(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a")
	cfg := Config{Folders: []string{dir}, Dir: t.TempDir(), BootID: "one"}
	before := open(t, cfg)
	torn := pin(t, before, "a.sh")
	if err := os.Chmod(torn.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(torn.Path, 0); err != nil {
		t.Fatal(err)
	}
	cfg.BootID = "two"
	l := open(t, cfg)
	p := pin(t, l, "a.sh")
	defer p.Release()
	if p.Generation <= torn.Generation || content(t, p.Path) != "a" || len(generations(t, l)) != 1 {
		t.Errorf("generation %d, %q, on disk %v", p.Generation, content(t, p.Path), generations(t, l))
	}
}

func TestHalfAGenerationIsClearedAway(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a")
	cfg := Config{Folders: []string{dir}, Dir: t.TempDir()}
	write(t, cfg.Dir, "generations/.new-7/scripts/a.sh", "half")
	write(t, cfg.Dir, "generations/8/scripts/a.sh", "no index")
	write(t, cfg.Dir, "generations/9/"+indexFile, "{broken")
	write(t, cfg.Dir, "tmp/blob-1", "half")
	write(t, cfg.Dir, "blobs/unused", "unused")
	l := open(t, cfg)
	l.Retain(nil) // no job runs in the one without an index
	l.collect()
	if got := generations(t, l); !slices.Equal(got, []string{"10"}) || blobCount(t, l) != 1 {
		t.Errorf("on disk %v, %d blobs", got, blobCount(t, l))
	}
	if entries, err := os.ReadDir(l.blobs.tmp); err != nil || len(entries) > 0 {
		t.Errorf("left in tmp: %v, %v", entries, err)
	}
}

// A job may run as the user that owns its published script, or as root.
func TestAScriptThatAJobWroteToIsPublishedAnew(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "good", "twin.sh", "good")
	l := run(t, dir)
	p := pin(t, l, "a.sh")
	if err := os.Chmod(p.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path, []byte("evil"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.sh", "twin.sh"} {
		again := pin(t, l, name)
		if text := content(t, again.Path); text != "good" {
			t.Errorf("%s runs %q", name, text)
		}
		again.Release()
	}
	p.Release()
}

// The rights of the sources go with them, but for writing and setuid.
func TestRightsAreKeptWithoutWriting(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "private/a.sh", "a")
	for path, mode := range map[string]os.FileMode{"private": 0o750, "private/a.sh": 0o4711} {
		if err := unixChmod(filepath.Join(dir, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, Config{Folders: []string{dir}})
	p := pin(t, l, "private/a.sh")
	defer p.Release()
	file, err := os.Stat(p.Path)
	if err != nil || file.Mode() != 0o511 {
		t.Errorf("file %v, %v", file.Mode(), err)
	}
	folder, err := os.Stat(filepath.Dir(p.Path))
	if err != nil || folder.Mode().Perm()&0o077 != 0o050 {
		t.Errorf("folder %v, %v", folder.Mode(), err)
	}
}

// unixChmod sets the bits that os.FileMode writes differently, too.
func unixChmod(path string, mode os.FileMode) error {
	if mode&0o4000 != 0 {
		mode = mode&0o777 | os.ModeSetuid
	}
	return os.Chmod(path, mode)
}

func TestBlobsAreNotTakenWhileTheyChange(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a")
	b := newBlobs(t.TempDir(), t.TempDir())
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	info, err := root.Stat("a.sh")
	if err != nil {
		t.Fatal(err)
	}
	sig := signatureOf(info)
	if _, err := b.add(root, "a.sh", sig); err != nil {
		t.Fatal(err)
	}
	other := sig
	other.Changed--
	if _, err := b.add(root, "a.sh", other); !errors.Is(err, errMoved) {
		t.Errorf("another version: %v", err)
	}
	if _, err := b.add(root, "gone.sh", sig); !errors.Is(err, errMoved) {
		t.Errorf("gone: %v", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "a.sh"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.add(root, "a.sh", sig); !errors.Is(err, errBusy) {
		t.Errorf("open for writing: %v", err)
	}
	f.Close()
	if _, err := b.add(root, "a.sh", sig); err != nil {
		t.Errorf("closed: %v", err)
	}
}

// ext4 allows 65,000 links to one file; an empty __init__.py may need more.
func TestABlobWithTooManyLinksIsRenewed(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "a")
	b := newBlobs(t.TempDir(), t.TempDir())
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	info, err := root.Stat("a.sh")
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.add(root, "a.sh", signatureOf(info))
	if err != nil {
		t.Fatal(err)
	}
	next, err := b.renew(f)
	if err != nil || next.Ino == f.Ino || next.Blob != f.Blob || next.SHA256 != f.SHA256 {
		t.Fatalf("%+v after %+v, %v", next, f, err)
	}
	to := filepath.Join(t.TempDir(), "link")
	if linked, err := b.link(f, to); err != nil || linked != next || content(t, to) != "a" {
		t.Errorf("%+v, %v", linked, err)
	}
	if err := b.sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, next.Blob)); err != nil {
		t.Errorf("a blob in use was removed: %v", err)
	}
}

// BenchmarkOneEditInTenThousand is what a change costs in a large folder.
func BenchmarkOneEditInTenThousand(b *testing.B) {
	dir := folderWith(b)
	for i := range 10_000 {
		write(b, dir, fmt.Sprintf("%d/%d.sh", i%100, i), fmt.Sprint("echo ", i))
	}
	began := time.Now()
	l := open(b, Config{Folders: []string{dir}})
	b.Logf("10,000 files are published first in %v", time.Since(began))
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			l.look(func(string, identity) {})
		}
	})
	b.Run("edit", func(b *testing.B) {
		live(b, l)
		n := 0
		for b.Loop() {
			n++
			write(b, dir, "7/7.sh", fmt.Sprint("edit ", n))
			pin(b, l, "7/7.sh").Release()
		}
	})
}

// BenchmarkPin is what a start pays for an unchanged script.
func BenchmarkPin(b *testing.B) {
	l := run(b, folderWith(b, "a/b.sh", "x"))
	for b.Loop() {
		pin(b, l, "a/b.sh").Release()
	}
}
