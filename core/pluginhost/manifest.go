package pluginhost

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/runner"
)

// filePrefix begins the name of every plugin's file.
const filePrefix = "drover-runner-"

var namePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`) })

// Manifest lies beside a plugin as drover-runner-NAME.json and says what was
// installed. A plugin without one, or that differs from it, is refused.
type Manifest struct {
	runner.Description
	SHA256 string `json:"sha256"`
}

// describeTimeout bounds how long a plugin may take to describe itself.
const describeTimeout = 5 * time.Second

// Probe asks a plugin file who it is, without a handshake.
func Probe(ctx context.Context, file string) (runner.Description, error) {
	const op = "probe plugin"
	var d runner.Description
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, file, "--describe")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it did not answer within %v", describeTimeout)
		}
		return d, errs.E(op, errs.Precondition, "PLUGIN_BROKEN", fmt.Errorf("%s --describe: %w", file, err)).
			WithHint("a runner plugin is a program that calls runner.Serve; see docs/plugin-authors.md")
	}
	if err := json.Unmarshal(out, &d); err != nil {
		return d, errs.E(op, errs.Precondition, "PLUGIN_BROKEN", fmt.Errorf("%s --describe printed no JSON object: %w", file, err)).
			WithHint("a runner plugin is a program that calls runner.Serve; see docs/plugin-authors.md")
	}
	if !namePattern().MatchString(d.Name) {
		return d, errs.E(op, errs.Precondition, "PLUGIN_NAME", fmt.Errorf("%s calls itself %q, not [a-z][a-z0-9-]*", file, d.Name))
	}
	if err := job.CheckRunner(d.Name, d.Version, d.Commands); err != nil {
		return d, errs.E(op, errs.Precondition, "PLUGIN_BROKEN", fmt.Errorf("%s --describe: %w", file, err))
	}
	if d.Protocol != runner.Protocol {
		return d, errs.E(op, errs.Precondition, "PLUGIN_PROTOCOL",
			fmt.Errorf("%s speaks protocol %d, this drover speaks %d", file, d.Protocol, runner.Protocol)).
			WithHint("build the plugin with a matching drover SDK")
	}
	return d, nil
}

// Install copies a plugin into dir with its manifest, the file first under
// another name and then renamed, so that a worker sees the old or the new one.
// wanted is the sha256 it must have, "" for any. The version before is kept in
// dir/.versions.
func Install(dir, file, wanted string) (Manifest, error) {
	const op = "install plugin"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Manifest{}, errs.E(op, errs.Precondition, "PLUGIN_FOLDER", err)
	}
	copied, sum, err := stage(dir, file)
	if err != nil {
		return Manifest{}, errs.E(op, errs.Precondition, "PLUGIN_FILE", err)
	}
	defer os.Remove(copied) //nolint:errcheck // gone after the rename
	if wanted != "" && !strings.EqualFold(wanted, sum) {
		return Manifest{}, errs.E(op, errs.Precondition, "PLUGIN_SHA256", fmt.Errorf("%s has sha256 %s, not %s", file, sum, wanted))
	}
	d, err := Probe(context.Background(), copied)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Description: d, SHA256: sum}
	target := filepath.Join(dir, filePrefix+d.Name)
	if old, err := Verify(dir, d.Name); err == nil {
		if old.SHA256 == sum {
			return old, nil
		}
		if err := keepVersion(dir, old); err != nil {
			return Manifest{}, errs.E(op, errs.Internal, "PLUGIN_FILE", err)
		}
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Manifest{}, errs.E(op, errs.Internal, "PLUGIN_FILE", err)
	}
	manifest, err := durable.Stage(target+".json", append(data, '\n'), 0o644)
	if err != nil {
		return Manifest{}, errs.E(op, errs.Internal, "PLUGIN_FILE", err)
	}
	defer manifest.Discard()
	if err := errors.Join(os.Rename(copied, target), manifest.Commit(), durable.SyncFolder(dir)); err != nil {
		return Manifest{}, errs.E(op, errs.Internal, "PLUGIN_FILE", err)
	}
	return m, nil
}

// stage copies a file into dir under a temporary name and sums it on the way.
func stage(dir, file string) (path, sum string, err error) {
	in, err := os.Open(file)
	if err != nil {
		return "", "", err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", "", errors.Join(err, fmt.Errorf("%s is not a regular file", file))
	}
	hash := sha256.New()
	path, err = writeExecutable(dir, 0o755, io.TeeReader(in, hash))
	return path, hex.EncodeToString(hash.Sum(nil)), err
}

// writeExecutable writes a program under a temporary name in dir, on disk for
// good. A child that another goroutine forks meanwhile would hold the file open
// for writing until it executes its own program, and ours could not be executed
// so long ("text file busy", go.dev/issue/22315): nobody forks while it is open.
func writeExecutable(dir string, mode os.FileMode, from io.Reader) (string, error) {
	syscall.ForkLock.RLock()
	path, err := writeTemp(dir, mode, from)
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return path, nil
}

func writeTemp(dir string, mode os.FileMode, from io.Reader) (string, error) {
	out, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, from)
	if err := errors.Join(err, out.Chmod(mode), out.Close()); err != nil {
		return "", errors.Join(err, os.Remove(out.Name()))
	}
	return out.Name(), nil
}

// Programs lists the files of runner plugins in a folder.
func Programs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.E("look for runner plugins", errs.Invalid, "PLUGIN_FOLDER", err)
	}
	var files []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), filePrefix); ok && !strings.Contains(name, ".") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func keepVersion(dir string, m Manifest) error {
	kept := filepath.Join(dir, ".versions", m.Name)
	if err := os.MkdirAll(kept, 0o755); err != nil {
		return fmt.Errorf("keep version %s: %w", m.Version, err)
	}
	err := os.Link(filepath.Join(dir, filePrefix+m.Name), filepath.Join(kept, m.Version+"-"+m.SHA256))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keep version %s: %w", m.Version, err)
	}
	return nil
}

// Versions lists the files of earlier versions of a plugin, by version and sum.
func Versions(dir, name string) ([]string, error) {
	kept := filepath.Join(dir, ".versions", name)
	entries, err := os.ReadDir(kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E("list plugin versions", errs.Internal, "PLUGIN_FOLDER", err)
	}
	var files []string
	for _, e := range entries {
		files = append(files, filepath.Join(kept, e.Name()))
	}
	return files, nil
}

// InstallKept installs a version again that was replaced by another one. wanted is
// the sha256 it must have, "" for any; the one that was kept last is taken.
func InstallKept(dir, name, version, wanted string) (Manifest, error) {
	const op = "install plugin"
	if !namePattern().MatchString(name) {
		return Manifest{}, errs.E(op, errs.Invalid, "PLUGIN_NAME", fmt.Errorf("%q is not the name of a plugin", name)).
			WithHint("give the name, such as bash, and no file: the version is taken from what was installed before")
	}
	files, err := Versions(dir, name)
	if err != nil {
		return Manifest{}, err
	}
	var (
		best, sum string
		newest    time.Time
		kept      []string
	)
	for _, f := range files {
		// VERSION-SHA256: a version may hold dashes, a sum does not.
		at := strings.LastIndexByte(f, '-')
		if at < 0 {
			continue
		}
		v := filepath.Base(f[:at])
		if !slices.Contains(kept, v) {
			kept = append(kept, v)
		}
		info, err := os.Stat(f)
		if v != version || wanted != "" && !strings.EqualFold(wanted, f[at+1:]) || err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (best == "" || newest.Before(time.Unix(st.Ctim.Unix()))) {
			best, sum, newest = f, f[at+1:], time.Unix(st.Ctim.Unix()) // the time of the link
		}
	}
	if best == "" {
		e := errs.E(op, errs.NotFound, "PLUGIN_VERSION", fmt.Errorf("no version %s of %s is kept in %s", version, name, filepath.Join(dir, ".versions")))
		if len(kept) > 0 {
			e = e.WithHint("kept are: %s", strings.Join(kept, ", "))
		}
		return Manifest{}, e
	}
	return Install(dir, best, sum)
}

// Remove takes a plugin out of dir. Workers let it finish its jobs.
func Remove(dir, name string) error {
	target := filepath.Join(dir, filePrefix+name)
	err := os.Remove(target)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.E("remove plugin", errs.NotFound, "PLUGIN_UNKNOWN", fmt.Errorf("there is no %s", target)).
			WithHint(`"drover plugin ls --dir %s" lists what there is`, dir)
	}
	if err := errors.Join(err, ignoreMissing(os.Remove(target+".json"))); err != nil {
		return errs.E("remove plugin", errs.Internal, "PLUGIN_FILE", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Found is one plugin file of a folder, with why it is refused.
type Found struct {
	Name     string
	Manifest Manifest
	Err      error
}

// List looks at every plugin file of a folder.
func List(dir string) ([]Found, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.E("list plugins", errs.Precondition, "PLUGIN_FOLDER", err)
	}
	var out []Found
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), filePrefix)
		if !ok || strings.HasSuffix(name, ".json") {
			continue
		}
		m, err := Verify(dir, name)
		out = append(out, Found{name, m, err})
	}
	return out, nil
}

// Verify checks one plugin of a folder: name, owner and mode of the file and
// of every folder above it, manifest, sum, protocol.
func Verify(dir, name string) (Manifest, error) {
	f, m, err := openVerified(dir, name)
	if err != nil {
		return m, err
	}
	return m, f.Close()
}

func refuse(reason, format string, args ...any) *errs.Error {
	return errs.E("verify plugin", errs.Precondition, reason, fmt.Errorf(format, args...))
}

// openVerified returns the very file that was hashed: whoever executes it must
// take its bytes from there, not from the path.
func openVerified(dir, name string) (*os.File, Manifest, error) {
	var m Manifest
	path := filepath.Join(dir, filePrefix+name)
	if !namePattern().MatchString(name) {
		return nil, m, refuse("PLUGIN_NAME", "%s: %q is not [a-z][a-z0-9-]*", path, name)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, m, refuse("PLUGIN_FILE", "%w", err)
	}
	if m, err = check(f, path, name); err != nil {
		f.Close()
		return nil, m, err
	}
	return f, m, nil
}

func check(f *os.File, path, name string) (m Manifest, err error) {
	info, err := f.Stat()
	if err != nil {
		return m, refuse("PLUGIN_FILE", "%w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return m, refuse("PLUGIN_FILE", "%s is not an executable file", path)
	}
	if err := trusted(path, info, false); err != nil {
		return m, err
	}
	if err := trustedFolders(filepath.Dir(path)); err != nil {
		return m, err
	}
	data, err := os.ReadFile(path + ".json")
	if err != nil {
		return m, refuse("PLUGIN_MANIFEST", "%s has no manifest: %w", path, err).WithHint("install it with \"drover plugin install FILE\"")
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, refuse("PLUGIN_MANIFEST", "%s.json: %w", path, err)
	}
	sum, err := sumFrom(f)
	if err != nil {
		return m, refuse("PLUGIN_FILE", "%w", err)
	}
	switch {
	case m.Name != name:
		return m, refuse("PLUGIN_MANIFEST", "%s.json is of the plugin %q", path, m.Name)
	case m.SHA256 != sum:
		return m, refuse("PLUGIN_TAMPERED", "%s was changed after it was installed: sha256 is %s, installed was %s", path, sum, m.SHA256).
			WithHint("if you changed it yourself, install it again")
	case m.Protocol != runner.Protocol:
		return m, refuse("PLUGIN_PROTOCOL", "%s speaks protocol %d, this drover speaks %d", path, m.Protocol, runner.Protocol)
	}
	return m, nil
}

func sumFrom(r io.Reader) (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// trusted refuses what somebody else could have written. In a sticky folder such as
// /tmp others replace nothing that is not theirs, but they add to it: above the plugin
// folder that does no harm.
func trusted(path string, info fs.FileInfo, above bool) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return refuse("PLUGIN_FILE", "%s: owner unknown", path)
	}
	if st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return refuse("PLUGIN_OWNER", "%s belongs to user %d, neither to root nor to the worker's user", path, st.Uid).
			WithHint("chown it")
	}
	sticky := above && info.Mode()&fs.ModeSticky != 0
	if info.Mode().Perm()&0o022 != 0 && !sticky {
		return refuse("PLUGIN_WRITABLE", "%s is writable by group or others (mode %04o)", path, info.Mode().Perm()).
			WithHint("chmod go-w %s", path)
	}
	return nil
}

func trustedFolders(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return refuse("PLUGIN_FOLDER", "%w", err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return refuse("PLUGIN_FOLDER", "%w", err)
	}
	for first := true; ; real, first = filepath.Dir(real), false {
		info, err := os.Stat(real)
		if err != nil {
			return refuse("PLUGIN_FOLDER", "%w", err)
		}
		if err := trusted(real, info, !first); err != nil {
			return err
		}
		if real == "/" {
			return nil
		}
	}
}
