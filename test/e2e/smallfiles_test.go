package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/test/cluster"
)

// smallFiles are the small files of the daemons, as patterns below the folder of a
// cluster: of several the last is meant. RUN is the folder of the bash plugin's process.
func smallFiles() map[string][]string {
	pair := func(name string) []string {
		return []string{
			"certs/" + name + "/ca.crt", "certs/" + name + "/tls.crt", "certs/" + name + "/tls.key", "certs/" + name + "/current",
			"certs/" + name + "/pair-*/tls.crt", "certs/" + name + "/pair-*/tls.key", "certs/" + name + "/.lock",
		}
	}
	return map[string][]string{
		"scheduler": append(pair("scheduler"), "scheduler.yaml", "scheduler/address", "scheduler/store/LOCK", "scheduler/store/OPTIONS-*",
			"scheduler/store/MANIFEST-*", "scheduler/store/marker.manifest.*", "scheduler/store/marker.format-version.*",
			"ca/ca.crt", "ca/ca.key", "ca/crl.pem", "ca/issued/*.pem", "ca/tokens/*", "ca/.lock"),
		"worker": append(pair("w1"), "certs/w1/crl.pem", "w1.yaml", "policy.yaml", "w1/journal", "w1/journal.size", "w1/journal.lock", "w1/worker.json",
			"w1/worker.json.copy", "w1/output/boot", "w1/output/boot.copy", "w1/scripts/generations/*/.drover-index.json",
			"w1/scripts/blobs/*", "w1/plugins/plugins/bash-*.json", "w1/plugins/plugins/bash-*.json.copy",
			"w1-plugins/drover-runner-bash.json", "RUN/keeps", "RUN/plugin.log", "RUN/exits.journal"),
		// The plugin is killed with its worker.
		"plugin": {
			"RUN/exits.journal", "RUN/keeps", "RUN/plugin.log", "w1/plugins/plugins/bash-*.json", "w1/plugins/plugins/bash-*.json.copy",
			"w1/plugins/bin/BASH", "w1-plugins/drover-runner-bash.json", "w1-plugins/drover-runner-bash",
		},
	}
}

var damageKinds = []string{"empty", "half", "garbage", "missing", "folder"}

// damagedFile is a file, or a link, with what it was before.
type damagedFile struct {
	path string
	mode fs.FileMode
	data []byte
	link string
}

func readFile(t *testing.T, path string) *damagedFile {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &damagedFile{path: path, mode: info.Mode().Perm()}
	if info.Mode()&fs.ModeSymlink != 0 {
		f.mode = 0o600
		f.link, err = os.Readlink(path)
		f.data = []byte(f.link)
	} else {
		f.data, err = os.ReadFile(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *damagedFile) damage(t *testing.T, kind string) {
	t.Helper()
	err := os.Remove(f.path)
	switch kind {
	case "empty":
		err = errors.Join(err, os.WriteFile(f.path, nil, f.mode))
	case "half":
		err = errors.Join(err, os.WriteFile(f.path, f.data[:len(f.data)/2], f.mode))
	case "garbage":
		err = errors.Join(err, os.WriteFile(f.path, bytes.Repeat([]byte{0xa5, 0x5a, '\n'}, max(1, len(f.data)/3)), f.mode))
	case "folder":
		err = errors.Join(err, os.MkdirAll(filepath.Join(f.path, "in it"), 0o700))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (f *damagedFile) restore(t *testing.T) {
	t.Helper()
	err := os.RemoveAll(f.path)
	if f.link != "" {
		err = errors.Join(err, os.Symlink(f.link, f.path))
	} else {
		err = errors.Join(err, os.WriteFile(f.path+".fresh", f.data, f.mode), os.Rename(f.path+".fresh", f.path))
	}
	if _, gone := os.Lstat(filepath.Dir(f.path)); errors.Is(gone, fs.ErrNotExist) {
		return // with the folder of a plugin process that has ended, perhaps just now
	}
	if err != nil {
		t.Fatal(err)
	}
}

// replaced reports whether something whole has been written in the place of the damage.
func (f *damagedFile) replaced(kind string) bool {
	info, err := os.Lstat(f.path)
	if err != nil {
		return false
	}
	now, _ := os.ReadFile(f.path)
	switch kind {
	case "missing":
		return true
	case "folder":
		return !info.IsDir()
	case "empty":
		return len(now) > 0
	case "half":
		return !bytes.Equal(now, f.data[:len(f.data)/2])
	default:
		return !bytes.HasPrefix(now, []byte{0xa5, 0x5a})
	}
}

// damageWorld is a cluster with a job that runs, one that waits, and two that have ended.
type damageWorld struct {
	*cluster.Cluster
	t       *testing.T
	w       *cluster.Daemon
	starts  string // a file with a line for each start of a job that runs
	running string
	jobs    int // that ran or run
	settled int
	long    bool
	seven   string
	ok      string
	queued  string
}

func newDamageWorld(t *testing.T) *damageWorld {
	t.Helper()
	c := cluster.New(t, bin)
	x := &damageWorld{Cluster: c, t: t, starts: c.Path("starts")}
	files := scripts()
	files["long.sh"] = "echo \"$1\" >> \"$2\"; exec sleep 1000\n"
	for name, text := range map[string]string{"scheduler": "lease: 10s\n", "w1": "slots: 16\n"} {
		if err := os.WriteFile(c.Path(name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Issue("gone", certs.RoleViewer)
	if _, err := c.CA.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CA.NewToken(certs.TokenRequest{Role: certs.RoleWorker, TTL: time.Hour, Uses: 1, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	c.Scheduler.Kill() // it is started again on the address that it has now
	c.StartScheduler(c.Address, "--config", c.Path("scheduler.yaml"))
	x.w = c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), files), "--config", c.Path("w1.yaml"))
	x.ok, x.seven = c.Must("run", "-d", "ok.sh"), c.Must("run", "-d", "seven.sh")
	c.Run("wait", x.ok, x.seven)
	x.queued = c.Must("run", "-d", "--label", "no=worker", "ok.sh")
	x.begin()
	return x
}

// begin starts the next job that runs.
func (x *damageWorld) begin() {
	x.t.Helper()
	x.jobs++
	x.running = x.Must("run", "-d", "long.sh", fmt.Sprint(x.jobs), x.starts)
	x.Eventually("the job runs", func() bool { return status(x.t, x.Cluster, x.running).State == "RUNNING" })
}

func (x *damageWorld) pluginRecord() (r struct {
	PID    int    `json:"pid"`
	Dir    string `json:"dir"`
	SHA256 string `json:"sha256"`
},
) {
	x.t.Helper()
	x.Eventually("the record of the plugin", func() bool {
		files, _ := filepath.Glob(x.Path("w1", "plugins", "plugins", "bash-*.json"))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err == nil && json.Unmarshal(data, &r) == nil && syscall.Kill(r.PID, 0) == nil {
				return true
			}
		}
		return false
	})
	return r
}

// find returns the file that a pattern means; "" when there is none.
func (x *damageWorld) find(pattern string) string {
	x.t.Helper()
	path := x.Path(pattern)
	if strings.Contains(pattern, "RUN") || strings.Contains(pattern, "BASH") || strings.Contains(pattern, "plugins/bash-") {
		r := x.pluginRecord()
		pattern = strings.ReplaceAll(pattern, "BASH", r.SHA256)
		pattern = strings.ReplaceAll(pattern, "bash-*", filepath.Base(r.Dir))
		path = x.Path(pattern)
		if name, ok := strings.CutPrefix(pattern, "RUN/"); ok {
			path = filepath.Join(r.Dir, name)
		}
	}
	found, err := filepath.Glob(path)
	if err != nil {
		x.t.Fatal(err)
	}
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

// outcome is what a daemon did at its start.
type outcome struct {
	refused bool
	said    string // the line about the file, in the log
	job     string // what became of the job that ran; "" when it runs
}

func (o outcome) String() string {
	out := "starts"
	switch {
	case o.refused:
		out = "refuses"
	case o.said != "":
		out = "starts, says so"
	}
	if o.job != "" {
		out += ", job " + o.job
	}
	return out
}

// try damages one file of daemons that are killed, starts them, and says what they did.
func (x *damageWorld) try(owner, pattern, kind string) (o outcome, tried bool) {
	x.t.Helper()
	path := x.find(pattern)
	if path == "" {
		return o, false
	}
	where := owner + ": " + pattern + ", " + kind
	d := x.w
	if owner == "scheduler" {
		d = x.Scheduler
	}
	plugin := 0
	if owner == "plugin" {
		plugin = x.pluginRecord().PID
	}
	if d.Alive() {
		d.Kill()
	}
	if plugin != 0 {
		_ = syscall.Kill(plugin, syscall.SIGKILL)
	}
	f := readFile(x.t, path)
	f.damage(x.t, kind)
	logged := len(d.LogText())
	text := func() string { return d.LogText()[logged:] }
	d.Start()
	x.Eventually(where+": it is up or has refused", func() bool {
		return strings.Contains(text(), "msg=\""+d.Args()[1]+" is up\"") || !d.Alive()
	})
	if !d.Alive() {
		o.refused = true
		o.said = x.refusal(where, path, text())
		f.restore(x.t)
		return o, true // what comes next starts it
	}
	switch {
	case pattern == "policy.yaml": // an empty one allows next to nothing
		d.Kill()
		f.restore(x.t)
		return o, true
	case strings.HasPrefix(pattern, "w1-plugins/"): // a plugin that has died cannot be started again
		if kind != "missing" || strings.HasSuffix(pattern, ".json") {
			x.Eventually(where+": it says that the plugin is refused", func() bool { return strings.Contains(text(), "plugin refused") })
		}
		f.restore(x.t)
	}
	x.settle(where, &o)
	switch {
	case f.replaced(kind):
	case strings.HasPrefix(pattern, "scheduler/store/") && !strings.Contains(pattern, "format"): // it has others by now, and must not find old ones
		if err := os.RemoveAll(f.path); err != nil {
			x.t.Fatal(err)
		}
	default:
		f.restore(x.t)
	}
	for line := range strings.Lines(text()) {
		if strings.Contains(line, filepath.Base(path)) && !strings.Contains(line, "level=INFO") {
			o.said = strings.TrimSpace(line)
		}
	}
	return o, true
}

// refusal checks the message of a daemon that did not start: one line that names the
// file, and perhaps a hint.
func (x *damageWorld) refusal(where, path, text string) string {
	x.t.Helper()
	var said []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "drover: ") {
			said = append(said, strings.TrimSpace(line))
		}
		if strings.HasPrefix(line, "panic") || strings.HasPrefix(line, "fatal error") {
			x.t.Errorf("%s: %s", where, text)
		}
	}
	// A key or a certificate is known by the link that leads to it.
	name := strings.ReplaceAll(filepath.Base(path), "current", "tls.crt")
	name, _, _ = strings.Cut(name, ".0") // the number of a marker is in its name
	if strings.HasPrefix(name, "OPTIONS-") || strings.HasPrefix(name, "MANIFEST-") && strings.Contains(text, "sstable") {
		name = "/store" // Pebble does not say which file, or which of its tables half a manifest lacks
	}
	if len(said) != 1 || !strings.Contains(said[0], name) {
		x.t.Errorf("%s: it does not say in one line that it is %s:\n%s", where, path, text)
	}
	if !strings.Contains(text, "hint: ") && !strings.Contains(text, "known keys") {
		x.t.Errorf("%s: it does not say what to do:\n%s", where, text)
	}
	return strings.Join(said, " ")
}

// settle waits until the cluster works again, now and then in the short form, and checks
// what it has promised.
func (x *damageWorld) settle(where string, o *outcome) {
	x.t.Helper()
	if x.settled++; x.long || x.settled%8 == 0 {
		x.works(where)
	}
	x.kept(where, o)
}

func (x *damageWorld) works(where string) {
	x.t.Helper()
	var r cluster.Result
	x.Eventually(where+": a job runs", func() bool {
		r = x.Run("run", "--queue-timeout", "30s", "ok.sh")
		return r.Code == 0 || !x.Scheduler.Alive() || !x.w.Alive()
	})
	if r.Code != 0 || r.Stdout != "out\n" {
		x.t.Fatalf("%s: exit %d, %q, %q; log:\n%s", where, r.Code, r.Stdout, r.Stderr, x.w.LogText())
	}
}

// kept checks that no exit code is invented, and that nothing runs twice.
func (x *damageWorld) kept(where string, o *outcome) {
	x.t.Helper()
	var s struct {
		State    string `json:"state"`
		Evidence string `json:"evidence"`
		ExitCode *int   `json:"exit_code"`
		Reason   string `json:"reason"`
	}
	if err := json.Unmarshal([]byte(x.Must("status", x.running, "-o", "json")), &s); err != nil {
		x.t.Fatal(err)
	}
	if s.ExitCode != nil { // it sleeps for longer than the test
		x.t.Errorf("%s: the job is %s with code %d by %s: invented (P6)", where, s.State, *s.ExitCode, s.Evidence)
	}
	if s.State != "RUNNING" {
		o.job = s.State
		x.begin()
	}
	lines, err := os.ReadFile(x.starts)
	if err != nil {
		x.t.Fatal(err)
	}
	got := strings.Fields(string(lines))
	slices.Sort(got)
	if unique := slices.Compact(slices.Clone(got)); len(unique) != len(got) || len(got) != x.jobs {
		x.t.Fatalf("%s: starts %v of %d jobs: something ran twice, or not at all (P2)", where, got, x.jobs)
	}
}

// ended checks what was over before any damage.
func (x *damageWorld) ended() {
	x.t.Helper()
	var s struct {
		ExitCode *int `json:"exit_code"`
	}
	if err := json.Unmarshal([]byte(x.Must("status", x.seven, "-o", "json")), &s); err != nil || s.ExitCode == nil || *s.ExitCode != 7 {
		x.t.Errorf("the job that ended with 7: %+v, %v", s, err)
	}
	if got := status(x.t, x.Cluster, x.queued).State; got != "QUEUED" {
		x.t.Errorf("the job that waits is %s", got)
	}
	want(x.t, x.Run("logs", x.ok), 0, "out\n", "err\n")
}

// TestP2_SmallFiles: each small file of each daemon is empty, half, garbage, missing or a
// folder at a start. The daemon starts, or says in one line which file and what to do;
// nothing runs twice, and no exit code is invented. DROVER_LONG=1 makes 1,000 starts.
func TestP2_SmallFiles(t *testing.T) {
	t.Parallel()
	rounds := 1
	if os.Getenv("DROVER_LONG") != "" {
		total := 0
		for _, files := range smallFiles() {
			total += len(files) * len(damageKinds)
		}
		rounds = 1000/total + 1
	}
	for owner, files := range smallFiles() {
		t.Run(owner[:1], func(t *testing.T) {
			t.Parallel()
			x := newDamageWorld(t)
			x.long = rounds > 1
			began, starts := time.Now(), 0
			cell := map[string]string{}
			for range rounds {
				for _, i := range rand.Perm(len(files) * len(damageKinds)) {
					file, kind := files[i/len(damageKinds)], damageKinds[i%len(damageKinds)]
					o, tried := x.try(owner, file, kind)
					if !tried {
						t.Logf("%s: there is no such file", file)
						continue
					}
					starts++
					key := file + "|" + kind
					if was := cell[key]; was == "" || !strings.Contains(was, o.String()) {
						cell[key] = strings.TrimPrefix(was+" / "+o.String(), " / ")
					}
					t.Logf("%s, %s: %s: %s", file, kind, o, o.said)
				}
			}
			d := x.w
			if owner == "scheduler" {
				d = x.Scheduler
			}
			if !d.Alive() {
				d.Start()
			}
			x.works("at the end")
			x.kept("at the end", &outcome{})
			x.ended()
			var out strings.Builder
			for _, file := range files {
				fmt.Fprintf(&out, "| %s ", file)
				for _, kind := range damageKinds {
					fmt.Fprintf(&out, "| %s ", cell[file+"|"+kind])
				}
				out.WriteString("|\n")
			}
			t.Logf("%s: %d starts in %v\n| file | %s |\n%s", owner, starts, time.Since(began).Round(time.Second), strings.Join(damageKinds, " | "), &out)
		})
	}
}
