package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func TestWhatIsPublishedIsWhatWasThere(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "count.sh", "echo 1\n", "lib/data.bin", "\x00\xff", "empty", "")
	if err := os.Chmod(filepath.Join(dir, "count.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := open(t, Config{Folders: []string{dir}})
	p := pin(t, l, "count.sh")
	defer p.Release()
	sum := sha256.Sum256([]byte("echo 1\n"))
	want := Pin{
		Path: filepath.Join(p.Root, "count.sh"), Root: p.Root, Source: filepath.Join(dir, "count.sh"),
		Folder: "scripts", Name: "count.sh", SHA256: hex.EncodeToString(sum[:]), Generation: 1,
	}
	if got := *p; got.Path != want.Path || got.Source != want.Source || got.Folder != want.Folder ||
		got.Name != want.Name || got.SHA256 != want.SHA256 || got.Generation != want.Generation {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if text := content(t, p.Path); text != "echo 1\n" {
		t.Errorf("published %q", text)
	}
	info, err := os.Stat(p.Path)
	if err != nil || info.Mode() != 0o555 {
		t.Errorf("mode %v, %v: want executable and not writable", info.Mode(), err)
	}
	if text := content(t, filepath.Join(p.Root, "lib/data.bin")); text != "\x00\xff" {
		t.Errorf("beside it: %q", text)
	}
	if index := l.Index(); index.Generation != 1 || len(index.Scripts) != 3 || index.Scripts[0].Path != "count.sh" ||
		index.Scripts[0].Size != 7 || index.Scripts[0].SHA256 != want.SHA256 || index.Scripts[0].ModTime.IsZero() {
		t.Errorf("index %+v", index)
	}
}

func TestAPathMayBeginWithTheFoldersOwnNames(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "count.sh", "right")
	l := open(t, Config{Folders: []string{dir}})
	for _, path := range []string{"count.sh", "scripts/count.sh", "worker/scripts/count.sh", strings.TrimPrefix(dir, "/") + "/count.sh"} {
		p := pin(t, l, path)
		if p.Name != "count.sh" {
			t.Errorf("%q is %q", path, p.Name)
		}
		p.Release()
	}
	for _, path := range []string{"worker/count.sh", "other/scripts/count.sh", "cripts/count.sh"} {
		_, err := l.Pin(path)
		isField(t, err, job.ReasonScriptGone)
	}
}

func TestTheLiteralNameComesFirstThenTheFirstFolder(t *testing.T) {
	t.Parallel()
	first := folderWith(t, "both.sh", "first", "count.sh", "short")
	second := folderWith(t, "both.sh", "second", "scripts/count.sh", "literal")
	l := open(t, Config{Folders: []string{first, second}})
	for path, want := range map[string]string{"both.sh": "first", "scripts/both.sh": "first", "scripts/count.sh": "literal", "count.sh": "short"} {
		p := pin(t, l, path)
		if got := content(t, p.Path); got != want {
			t.Errorf("%q is %q, want %q", path, got, want)
		}
		p.Release()
	}
	var both []string
	for _, s := range l.Index().Scripts {
		if s.Path == "both.sh" {
			both = append(both, s.Folder)
		}
	}
	if fmt.Sprint(both) != "[scripts scripts~2]" {
		t.Errorf("the index shows both.sh of %v, want both folders in order", both)
	}
}

// P13: only regular files below the folder, and the error says why not.
func TestWhatIsNoRegularFileInsideIsRefused(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "secret.sh")
	write(t, filepath.Dir(outside), "secret.sh", "secret")
	dir := folderWith(t, "good.sh", "good", "sub/deep.sh", "deep", "large.sh", strings.Repeat("x", 1001), ".git/hooks/x.sh", "hook")
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(outside, "absolute.sh")
	link("../../../"+filepath.Base(filepath.Dir(outside))+"/secret.sh", "relative.sh")
	link("../..", "up")
	link(filepath.Dir(outside), "away")
	link("nothing", "dangling.sh")
	link("circle.sh", "circle.sh")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo.sh"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "socket.sh"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	refused := map[string]string{
		"sub": "folder", "large.sh": "1000", "absolute.sh": "leads out", "relative.sh": "leads out", "away/secret.sh": "leads out",
		"up/worker/scripts/good.sh": "leads out", "dangling.sh": "to nothing", "circle.sh": "circle", "fifo.sh": "pipe",
		"socket.sh": "socket", ".git/hooks/x.sh": "version control",
	}
	if unix.Mknod(filepath.Join(dir, "device.sh"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))) == nil { // root only
		refused["device.sh"] = "device"
	}
	l := open(t, Config{Folders: []string{dir}, MaxSize: 1000})
	for path, words := range refused {
		_, err := l.Pin(path)
		isField(t, err, job.ReasonPath)
		if err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %q does not say %q", path, err, words)
		}
	}
	for _, path := range []string{"none.sh", "sub/none.sh", "good.sh/x", "none/good.sh"} {
		_, err := l.Pin(path)
		isField(t, err, job.ReasonScriptGone)
	}
	if index := byPath(l); len(index) != 2 {
		t.Errorf("published: %v", index)
	}
	if c := l.Conditions(); len(c) != 1 || c[0].Type != ConditionRefused || c[0].Since.IsZero() || !strings.Contains(c[0].Message, "more") {
		t.Errorf("conditions %+v", c)
	}
}

func TestLinksInsideTheFolderAreFollowed(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "v1/run.sh", "one", "v2/run.sh", "two")
	for name, to := range map[string]string{"now": "v1", "run.sh": "now/run.sh", "v1/back": "..", "v2/chain.sh": "../run.sh"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	l := run(t, dir)
	for _, path := range []string{"run.sh", "now/run.sh", "v1/run.sh", "v2/chain.sh"} {
		p := pin(t, l, path)
		info, err := os.Lstat(p.Path)
		if err != nil || !info.Mode().IsRegular() || content(t, p.Path) != "one" {
			t.Errorf("%q: published as %v, %v", path, info, err)
		}
		p.Release()
	}
	// The flip of a link is an edit of everything behind it.
	if err := os.Symlink("v2", filepath.Join(dir, "next")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "now")); err != nil {
		t.Fatal(err)
	}
	p := pin(t, l, "run.sh")
	defer p.Release()
	if text := content(t, p.Path); text != "two" {
		t.Errorf("after the flip: %q", text)
	}
}

// P13: swaps during the open. Whatever is put under the name meanwhile, the bytes
// outside never run.
func TestSwapsNeverLeadOut(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, filepath.Dir(secret), "secret", "secret")
	dir := folderWith(t, "a.sh", "good")
	l := run(t, dir)
	done, swapped := make(chan struct{}), sync.WaitGroup{}
	swapped.Go(func() {
		path, next := filepath.Join(dir, "a.sh"), filepath.Join(dir, ".next")
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			switch n % 3 {
			case 0:
				os.Symlink(secret, next)
			case 1:
				os.WriteFile(next, []byte("good"), 0o644)
			case 2:
				unix.Mkfifo(next, 0o644)
			}
			os.Rename(next, path)
		}
	})
	for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); {
		p, err := l.Pin("a.sh")
		if err != nil {
			continue
		}
		if text := content(t, p.Path); text != "good" {
			t.Errorf("published %q", text)
		}
		p.Release()
	}
	close(done)
	swapped.Wait()
	for path := range byPath(l) {
		if path != "a.sh" && path != ".next" {
			t.Errorf("published %q", path)
		}
	}
}

func TestConfigsThatCannotWork(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{}, {Dir: "/dev/null/x"}, {Dir: t.TempDir(), Folders: []string{"/"}}} {
		if _, err := New(cfg); err == nil || errs.ReasonOf(err) == "" {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestAFolderThatIsNotThereYetIsACondition(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "later")
	l := run(t, dir)
	if c := l.Conditions(); len(c) != 1 || c[0].Type != ConditionFolder || !strings.Contains(c[0].Message, dir) {
		t.Errorf("conditions %+v", c)
	}
	_, err := l.Pin("a.sh")
	isField(t, err, job.ReasonScriptGone)
	write(t, dir, "a.sh", "x")
	untilIndex(t, l, "the folder to be noticed", func(all map[string]job.ScriptInfo) bool { return len(all) == 1 })
	until(t, "the condition to go", func() bool { return len(l.Conditions()) == 0 })
}

func TestTheErrorOffersAScriptOfThatName(t *testing.T) {
	t.Parallel()
	l := open(t, Config{Folders: []string{folderWith(t, "deep/down/count.sh", "x")}})
	_, err := l.Pin("count.sh")
	isField(t, err, job.ReasonScriptGone)
	var e *errs.Error
	if errors.As(err, &e) && !strings.Contains(e.Hint, "deep/down/count.sh") {
		t.Errorf("hint %q", e.Hint)
	}
}
