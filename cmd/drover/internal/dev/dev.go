// Package dev runs a whole cluster on one machine: certificates, one scheduler
// and several workers as separate processes, the runner plugins and the
// example scripts, all below one data folder.
package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/pluginhost"
	"github.com/droverhq/drover/plugins/durable"
)

// DefaultAddress is where the scheduler listens when the port is free.
const DefaultAddress = "127.0.0.1:7420"

// Options says what cluster is wanted.
type Options struct {
	Dir     string // data folder
	Workers int    // 0: as before, or 1
	Memory  bool   // the scheduler keeps nothing on disk
	Scripts string // script folder; "" is the examples folder beside the binary
	Binary  string // the drover binary
	Slots   int    // of each worker; 0: 256
	Scratch bool   // it goes away soon: leave the well-known port to others
}

// Cluster is the cluster of one data folder. It is used by one goroutine.
type Cluster struct {
	opts Options
	settings
}

// settings are remembered over restarts, in cluster.json.
type settings struct {
	Address string `json:"address"`
	Workers int    `json:"workers"`
	Memory  bool   `json:"memory"`
	Scripts string `json:"scripts"` // that somebody named; "": the one beside the binary
}

// Running is dev.json: what clients need to find the cluster, and its processes.
type Running struct {
	Address   string    `json:"address"`
	Certs     string    `json:"certs"`
	Scripts   string    `json:"scripts"` // of its workers
	Processes []Process `json:"processes"`
}

// DefaultDir is the user's own dev cluster.
func DefaultDir() (string, error) {
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the home folder: %w", err)
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "drover", "dev"), nil
}

// Open reads what is known of the cluster in opts.Dir and adds what is new in
// opts. It starts nothing.
func Open(opts Options) (*Cluster, error) {
	c := &Cluster{opts: opts, settings: settings{Workers: 1}}
	if err := readJSON(c.path("cluster.json"), &c.settings); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if opts.Workers > 0 {
		c.Workers = opts.Workers
	}
	c.Memory = c.Memory || opts.Memory
	if opts.Scripts != "" {
		c.Scripts = opts.Scripts
	}
	return c, nil
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.opts.Dir}, parts...)...)
}

// lock makes sure that only one drover changes the cluster at a time.
func (c *Cluster) lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	f, err := os.OpenFile(c.path("dev.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("take the lock: %w", err)
	}
	return func() { f.Close() }, nil
}

// policy is that of the workers.
const policy = `# The dev cluster runs on your own machine as you: every command, every script
# and every ordinary variable is allowed, and jobs run as you, be that root.
commands: ["*"]
env: ["*"]
uploads: true
allow_root: true
`

// prepare makes folders, certificates, policy and plugin folder where missing.
func (c *Cluster) prepare() error {
	for _, d := range []string{"certs", "logs", "plugins", "scheduler"} {
		if err := os.MkdirAll(c.path(d), 0o700); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
	}
	if err := os.MkdirAll(c.scriptFolder(), 0o755); err != nil {
		return fmt.Errorf("make the script folder: %w", err)
	}
	if err := c.prepareCertificates(); err != nil {
		return err
	}
	if err := c.preparePlugins(); err != nil {
		return err
	}
	return writeFile(c.path("policy.yaml"), []byte(policy))
}

// scriptFolder is the one that was named, now or earlier. Without, it is the
// examples of the clone that the binary was built in, which another clone does not
// inherit; without those, a folder of the cluster's own.
func (c *Cluster) scriptFolder() string {
	if c.Scripts != "" {
		return c.Scripts
	}
	examples := filepath.Join(filepath.Dir(c.opts.Binary), "..", "examples", "scripts")
	if isFolder(examples) {
		return examples
	}
	return c.path("scripts")
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Validate refuses what cannot be, and changes nothing: a script folder that was
// named and is not there, or is not the one that workers run with.
func (c *Cluster) Validate() error {
	const op = "start the dev cluster"
	if c.Scripts != "" && !isFolder(c.Scripts) {
		return errs.Field(op, "scripts", "SCRIPTS", "there is no folder %s", c.Scripts).
			WithHint("name another with --scripts, or forget this cluster with --reset")
	}
	r, err := c.running()
	if err != nil {
		return err
	}
	if c.opts.Scripts != "" && r.hasWorkers() && r.Scripts != c.opts.Scripts {
		return errs.Field(op, "scripts", "RUNNING", "its workers run with %s", r.Scripts).
			WithHint(`stop them first with "drover dev stop"`)
	}
	return nil
}

func (c *Cluster) prepareCertificates() error {
	ca, err := certs.OpenCA(c.path("certs", "ca"))
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = certs.Init(c.path("certs", "ca"), "dev")
	}
	if err != nil {
		return err
	}
	hosts := []string{"127.0.0.1", "localhost"}
	wanted := []certs.IssueRequest{
		{Name: "scheduler", Role: certs.RoleScheduler, Hosts: hosts},
		{Name: "admin", Role: certs.RoleAdmin},
	}
	for i := range c.Workers {
		wanted = append(wanted, certs.IssueRequest{Name: workerName(i), Role: certs.RoleWorker, Hosts: hosts})
	}
	for _, w := range wanted {
		dir := c.path("certs", w.Name)
		if _, err := os.Stat(filepath.Join(dir, "tls.crt")); err == nil {
			continue
		}
		if err := ca.IssuePair(dir, w); err != nil {
			return err
		}
	}
	return nil
}

func workerName(i int) string { return "w" + strconv.Itoa(i+1) }

// preparePlugins installs the runner plugins that lie beside the binary.
func (c *Cluster) preparePlugins() error {
	found, err := pluginhost.Programs(filepath.Dir(c.opts.Binary))
	if err != nil {
		return err
	}
	for _, f := range found {
		if _, err := pluginhost.Install(c.path("plugins"), f, ""); err != nil {
			return err
		}
	}
	if len(found) == 0 {
		return errs.E("prepare the dev cluster", errs.NotFound, "NO_PLUGINS",
			fmt.Errorf("no drover-runner-* beside %s", c.opts.Binary)).WithHint(`build them with "make build"`)
	}
	return nil
}

// free tells whether a port can be listened on at this moment.
func free(address string) bool {
	l, err := net.Listen("tcp", address)
	return err == nil && l.Close() == nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read cluster state: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode cluster state: %w", err)
	}
	return writeFile(path, append(data, '\n'))
}

// writeFile replaces a file whole: a reader sees the old or the new one.
func writeFile(path string, data []byte) error {
	if err := durable.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("write cluster state: %w", err)
	}
	return nil
}
