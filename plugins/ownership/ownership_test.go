package ownership

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func file(t *testing.T, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := errors.Join(os.WriteFile(path, []byte("secret"), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

// away gives a file to another user, where the test may.
func away(t *testing.T, path string) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	if err := os.Chown(path, 65534, -1); err != nil {
		t.Fatal(err)
	}
	return true
}

func TestASecretThatOthersCanUseIsRefused(t *testing.T) {
	t.Parallel()
	for mode := range os.FileMode(0o1000) {
		if mode&0o400 == 0 {
			continue
		}
		path := file(t, mode)
		data, err := ReadSecret(path)
		if ok := mode&0o077 == 0; ok != (err == nil) || ok != (string(data) == "secret") || !ok && !errors.Is(err, ErrExposed) {
			t.Errorf("mode %04o: %q, %v", mode, data, err)
		}
		if err != nil && (!strings.HasSuffix(err.Error(), "run chmod 600 "+path) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	path := file(t, 0o600)
	if _, err := ReadSecret(path); away(t, path) {
		if _, err = ReadSecret(path); !errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "belongs to user 65534") {
			t.Errorf("of another user: %v", err)
		}
	} else if err != nil {
		t.Error(err)
	}
}

func TestASecretOfRootMayBeReadByItsGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		owner, self int
		want        os.FileMode
	}{{0, 0, 0o700}, {0, 1000, 0o740}, {1000, 1000, 0o700}, {1000, 0, 0o700}} {
		if got := secretMode(c.owner, c.self); got != c.want {
			t.Errorf("%+v: %o", c, got)
		}
	}
}

// asked names the file that TestReadAsAnotherUser reads.
const asked = "DROVER_TEST_SECRET"

// TestReadAsAnotherUser is what TestSecretsComeAsKubernetesAndSystemdMakeThem executes.
func TestReadAsAnotherUser(t *testing.T) {
	t.Parallel()
	path := os.Getenv(asked)
	if path == "" {
		return
	}
	if err := CheckFolder(filepath.Dir(path)); err != nil {
		t.Error(err)
	}
	if text, err := ReadSecret(path); err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestSecretsComeAsKubernetesAndSystemdMakeThem: to a process that is not root.
func TestSecretsComeAsKubernetesAndSystemdMakeThem(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // the files are root's
	}
	const group = 1234
	top := t.TempDir()
	at := func(name string) string { return filepath.Join(top, name) }
	self := at("self")
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	volume := at("volume")
	for _, err := range []error{
		os.Chmod(filepath.Dir(top), 0o755), os.Chmod(top, 0o755), os.WriteFile(self, program, 0o755), //nolint:gosec // to be executed by others
		os.Mkdir(volume, 0o755), syscall.Mount("tmpfs", volume, "tmpfs", 0, "mode=1777"),
	} {
		if err != nil {
			t.Logf("left out where nothing can be mounted: %v", err)
			return
		}
	}
	t.Cleanup(func() { _ = syscall.Unmount(volume, syscall.MNT_DETACH) })
	made := func(path string, mode os.FileMode) string {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("secret"), 0o600), os.Chown(path, 0, group), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := made(filepath.Join(volume, "..2026_11_30", "tls.key"), 0o440)
	for link, to := range map[string]string{"..data": "..2026_11_30", "tls.key": "..data/tls.key"} {
		if err := os.Symlink(to, filepath.Join(volume, link)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		c := exec.Command(self, "-test.run=^TestReadAsAnotherUser$")
		c.Env = append(os.Environ(), asked+"="+path)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{group}}}
		out, err := c.CombinedOutput()
		if err != nil {
			return string(out)
		}
		return ""
	}
	if out := read(filepath.Join(volume, "tls.key")); !strings.Contains(out, "other users can write to "+volume) {
		t.Errorf("a folder that all can write to: %s", out)
	}
	if err := syscall.Mount("", volume, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	if out := read(filepath.Join(volume, "tls.key")); out != "" {
		t.Errorf("a volume with fsGroup: %s", out)
	}
	if _, err := ReadSecret(key); !errors.Is(err, ErrExposed) {
		t.Errorf("root takes a key that a group reads: %v", err)
	}
	for mode, ok := range map[os.FileMode]bool{0o440: true, 0o640: true, 0o444: false, 0o660: false, 0o450: false, 0o644: false} {
		out := read(made(at(fmt.Sprintf("credentials-%o/tls.key", mode)), mode))
		if ok && out != "" || !ok && !strings.Contains(out, "run chmod 640") {
			t.Errorf("mode %o: %s", mode, out)
		}
	}
}

func TestASecretThatIsNoFileHoldsNothingUp(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := ReadSecret(fifo); done <- err }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a FIFO was read")
		}
	case <-time.After(time.Minute):
		t.Error("the open of a FIFO hangs")
	}
	if _, err := ReadSecret(t.TempDir()); err == nil {
		t.Error("a folder was read")
	}
}

func TestAFileThatOthersCanChangeIsRefused(t *testing.T) {
	t.Parallel()
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o644: true, 0o640: true, 0o664: false, 0o646: false, 0o666: false} {
		f, err := os.Open(file(t, mode))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckFile(f); ok != (err == nil) {
			t.Errorf("mode %04o: %v", mode, err)
		}
		if away(t, f.Name()) && CheckFile(f) == nil {
			t.Errorf("mode %04o of another user is taken", mode)
		}
		f.Close()
	}
}

func TestAFolderThatOthersCanReplaceIsRefused(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	above := filepath.Join(top, "above")
	dir := filepath.Join(above, "dir")
	link := filepath.Join(top, "link")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	if err := CheckFolder(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	check := func(what string, ok bool) {
		t.Helper()
		for _, path := range []string{dir, link} {
			if err := CheckFolder(path); ok != (err == nil) || !ok && !errors.Is(err, ErrExposed) {
				t.Errorf("%s, %s: %v", what, path, err)
			}
		}
	}
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	check("private", true)
	chmod(dir, 0o755)
	check("readable", true)
	for _, mode := range []os.FileMode{0o770, 0o707, 0o777 | os.ModeSticky} {
		chmod(dir, mode)
		check("writable "+mode.String(), false)
	}
	chmod(dir, 0o700)
	chmod(above, 0o777)
	check("below a writable one", false)
	chmod(above, 0o777|os.ModeSticky)
	check("below a sticky one", true)
	if away(t, above) {
		check("below one of another user", false)
	}
}

func TestRootTrustsWhoBecameIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		owner, self int
		sudo        string
		want        bool
	}{
		{0, 0, "", true},
		{0, 1000, "", true},
		{1000, 1000, "", true},
		{1000, 0, "", false},
		{1000, 0, "1000", true},
		{1001, 0, "1000", false},
		{1001, 1000, "1001", false},
		{0, 0, "1000", true},
	} {
		if got := trusted(c.owner, c.self, c.sudo); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
