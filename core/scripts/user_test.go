package scripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// nobody is a user without any rights.
const nobody = 65534

// TestAnOrdinaryUserCanPublish runs TestAsAnOrdinaryUser as another user.
func TestAnOrdinaryUserCanPublish(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("is one already")
	}
	dir := t.TempDir()
	binary, home := filepath.Join(dir, "test"), filepath.Join(dir, "home")
	copyFile(t, os.Args[0], binary)
	for _, err := range []error{os.Chmod(filepath.Dir(dir), 0o755), os.Mkdir(home, 0o755), os.Chown(home, nobody, nobody)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "-test.run=^TestAsAnOrdinaryUser$", "-test.v")
	cmd.Dir, cmd.Env = home, append(os.Environ(), "TMPDIR="+home, "HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAsAnOrdinaryUser publishes what belongs to this user, with rights that
// forbid writing, and removes it again.
func TestAsAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "old", "deep/b.sh", "b")
	if err := os.Chmod(filepath.Join(dir, "deep"), 0o500); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Folders: []string{dir}, Dir: t.TempDir()}
	l := open(t, cfg)
	live(t, l)
	first := pin(t, l, "deep/b.sh")
	write(t, dir, "a.sh", "new")
	p := pin(t, l, "a.sh")
	if text := content(t, p.Path); text != "new" {
		t.Errorf("published %q", text)
	}
	root := filepath.Dir(first.Root)
	first.Release()
	p.Release()
	until(t, "the first generation to go", func() bool {
		_, err := os.Stat(root)
		return err != nil
	})
	if err := os.Chmod(filepath.Join(dir, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// TestJobsOfOtherUsersReachTheirScripts: the way to a published script is open
// to whom a job runs as, also below a folder that an earlier life had closed.
func TestJobsOfOtherUsersReachTheirScripts(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs jobs as others")
	}
	dir := t.TempDir()
	own := filepath.Join(dir, "library")
	for _, err := range []error{os.Chmod(filepath.Dir(dir), 0o755), os.Mkdir(own, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	source := folderWith(t, "a.sh", "echo a")
	if err := os.Chmod(filepath.Join(source, "a.sh"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := open(t, Config{Folders: []string{source}, Dir: own})
	live(t, l)
	p := pin(t, l, "a.sh")
	cmd := exec.Command("cat", p.Path)
	cmd.Dir = p.Root
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "echo a" {
		t.Errorf("%v: %s", err, out)
	}
	p.Release()
}

// copyFile lets another process write the copy: a descriptor of this one, open
// for writing, could be inherited by a process that a test forks at this moment,
// and the copy could not be executed (ETXTBSY).
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
