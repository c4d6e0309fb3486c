package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/plugins/runner"
)

// installed is a host with one plugin, a script, in its folder.
func installed(t *testing.T, text string) (*Host, Manifest, *strings.Builder) {
	t.Helper()
	var log strings.Builder
	h := &Host{config: Config{Dir: t.TempDir(), State: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))}}
	sum := sha256.Sum256([]byte(text))
	m := Manifest{SHA256: hex.EncodeToString(sum[:])}
	m.Name, m.Version, m.Protocol = "x", "1", runner.Protocol
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.config.Dir, "drover-runner-x")
	for _, err := range []error{
		os.WriteFile(path, []byte(text), 0o755), os.WriteFile(path+".json", manifest, 0o644),
		os.Chmod(h.config.Dir, 0o755), os.Mkdir(filepath.Join(h.config.State, "bin"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return h, m, &log
}

const program = "#!/bin/sh\necho the verified one\n"

// TestKeptCopyOfAPlugin_ThatIsNotWhatWasVerified_IsMadeAgain: it was taken by its name
// alone, whatever a power cut or somebody with the worker's rights had made of it.
func TestKeptCopyOfAPlugin_ThatIsNotWhatWasVerified_IsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"torn":      func(p string) error { return os.WriteFile(p, []byte(program[:20]), 0o500) },
		"empty":     func(p string) error { return os.WriteFile(p, nil, 0o500) },
		"replaced":  func(p string) error { return os.WriteFile(p, []byte("#!/bin/sh\necho another\n"), 0o500) },
		"a link":    func(p string) error { return os.Symlink("/bin/true", p) },
		"a pipe":    func(p string) error { return syscall.Mkfifo(p, 0o700) },
		"a folder":  func(p string) error { return os.MkdirAll(filepath.Join(p, "in it"), 0o700) },
		"not there": func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, m, log := installed(t, program)
			kept := filepath.Join(h.config.State, "bin", m.SHA256)
			if err := spoil(kept); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time it is the kept one
				f, err := h.binary(m)
				if err != nil {
					t.Fatal(err)
				}
				cmd, err := command(f)
				if err != nil {
					t.Fatal(err)
				}
				// What lies under the name is of no importance any more.
				if err := os.WriteFile(kept+".new", []byte("#!/bin/sh\necho swapped\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(kept+".new", kept); err != nil {
					t.Fatal(err)
				}
				out, err := cmd.CombinedOutput()
				if string(out) != "the verified one\n" || err != nil {
					t.Errorf("it printed %q, %v", out, err)
				}
				f.Close()
				if f, err = h.binary(m); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			if got, err := os.ReadFile(kept); string(got) != program || err != nil {
				t.Errorf("kept is %q, %v", got, err)
			}
			if name != "not there" && !strings.Contains(log.String(), "making it again") {
				t.Errorf("the log says %q", log)
			}
			if left, err := os.ReadDir(filepath.Dir(kept)); len(left) != 1 || err != nil {
				t.Errorf("%v lie there, %v", left, err)
			}
		})
	}
}

// TestAPluginFileThatChangesWhileItIsCopied is not kept under the sum that it had.
func TestAPluginFileThatChangesWhileItIsCopied(t *testing.T) {
	t.Parallel()
	h, m, _ := installed(t, program)
	f, _, err := openVerified(h.config.Dir, m.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(f.Name(), []byte("#!/bin/sh\necho another\n"), 0o755); err != nil { // the same file
		t.Fatal(err)
	}
	kept := filepath.Join(h.config.State, "bin", m.SHA256)
	if err := keep(kept, f, m.SHA256); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("kept with %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(kept)); len(left) != 0 || err != nil {
		t.Errorf("%v lie there, %v", left, err)
	}
}

// TestAProgramIsExecutedByItsDescriptor, and is known by the name of its file.
func TestAProgramIsExecutedByItsDescriptor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	from, err := os.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	copied, err := writeExecutable(filepath.Dir(path), 0o500, from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd, err := command(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	cmd.Args = append(cmd.Args, "-c", `tr '\0' ' ' < /proc/$$/cmdline`)
	out, err := cmd.Output()
	if word, _, _ := strings.Cut(string(out), " "); word != path || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// TestAStickyPluginFolderIsRefused: others may put files into it, such as a hard link
// to a program of root with a manifest of their own. Above it they do no harm.
func TestAStickyPluginFolderIsRefused(t *testing.T) {
	t.Parallel()
	h, m, _ := installed(t, program)
	if err := os.Chmod(h.config.Dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(h.config.Dir, m.Name); errs.ReasonOf(err) != "PLUGIN_WRITABLE" {
		t.Errorf("verified with %v", err)
	}
	if err := os.Chmod(h.config.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(h.config.Dir), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(h.config.Dir, m.Name); err != nil {
		t.Errorf("below a sticky folder: %v", err)
	}
}
