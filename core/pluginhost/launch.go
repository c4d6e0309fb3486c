package pluginhost

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// tempPrefix begins the names of folders of plugin processes in the temporary folder.
const tempPrefix = "drover-"

// Bounds of a plugin's start.
const (
	startTimeout = 5 * time.Second
	infoTimeout  = 5 * time.Second
	maxMessage   = 64 << 20
	window       = 1 << 20 // bytes of a stream, and of the connection
	maxSocket    = 90      // bytes of a socket's folder; unix(7) allows 108 for the whole path
)

// record is State/plugins/FOLDER.json: what a restarted worker needs to find a
// plugin process that went on without it, or what a dead one has left. FOLDER is
// the name of its folder, so that no process takes the place of another.
type record struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	SHA256     string `json:"sha256"`
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
	BootID     string `json:"boot_id"`
	Socket     string `json:"socket"`
	Dir        string `json:"dir"` // of the exit journal
	Protocol   int    `json:"protocol"`
	Trial      bool   `json:"trial,omitempty"` // its canary has not passed yet: it has no job
}

// process is one plugin process with a connection to it.
type process struct {
	record
	foreign bool            // started by an earlier worker: no child of this process
	claims  map[string]bool // what it had of the earlier worker's
	client  *plugin.Client
	api     runnerv1.RunnerServiceClient
	info    *runnerv1.GetInfoResponse
}

// launch starts one version of a plugin: the very bytes that were verified. trial
// marks a process that is not to have jobs yet.
func (h *Host) launch(ctx context.Context, m Manifest, trial bool) (*process, error) {
	name := m.Name
	bin, err := h.binary(m)
	if err != nil {
		return nil, err
	}
	defer bin.Close()
	dir, err := h.runFolder(name)
	if err != nil {
		return nil, err
	}
	cmd, err := command(bin)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	cmd.Env = []string{
		runner.DirVariable + "=" + dir, runner.IdleVar + "=" + h.config.Idle.String(), plugin.EnvUnixSocketDir + "=" + dir,
	}
	for _, k := range []string{"PATH", "HOME", "LANG", "TMPDIR", "TZ"} {
		if v, ok := os.LookupEnv(k); ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	if failpoint.Enabled {
		cmd.Env = append(cmd.Env, failpoint.Variable+"="+os.Getenv(failpoint.Variable))
	}
	// A session of its own: signals to the worker's terminal are not the plugin's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	client := plugin.NewClient(h.clientConfig(&plugin.ClientConfig{Cmd: cmd, SkipHostEnv: true, StartTimeout: startTimeout}))
	// go-plugin waits for the pipes of a plugin that fails to start, and a child
	// of it may hold them open for ever. And it knows no context.
	end := func() {
		if pid, ok := withMark(runner.DirVariable + "=" + dir); ok {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
	}
	defer time.AfterFunc(startTimeout+time.Second, end).Stop()
	defer context.AfterFunc(ctx, end)()
	p, err := connect(ctx, client)
	if err != nil {
		client.Kill()
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	attach := client.ReattachConfig()
	p.record = record{
		Name: name, Version: m.Version, SHA256: m.SHA256, PID: attach.Pid, BootID: h.config.BootID,
		Socket: attach.Addr.String(), Dir: dir, Protocol: attach.ProtocolVersion, Trial: trial,
	}
	st, err := pidfd.ReadStat(p.PID)
	if err == nil {
		p.StartTicks = st.Ticks
		err = h.save(&p.record)
	}
	if err == nil && p.info.GetName() != name {
		err = fmt.Errorf("%s calls itself %q", name, p.info.GetName())
	}
	if err != nil {
		client.Kill()
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

// clientConfig adds what launch and reattach have in common. AutoMTLS is not
// used: it cannot be combined with reattaching, and the socket lies in a 0700
// folder. The logger is off: go-plugin would parse a plugin's stderr with
// unchecked assertions.
func (h *Host) clientConfig(c *plugin.ClientConfig) *plugin.ClientConfig {
	c.HandshakeConfig = runner.Handshake()
	c.Plugins = plugin.PluginSet{runner.PluginName: &runner.GRPCPlugin{}}
	c.AllowedProtocols = []plugin.Protocol{plugin.ProtocolGRPC}
	c.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Off, Output: io.Discard})
	c.GRPCDialOptions = dialOptions()
	return c
}

// dialOptions are those of a connection to a plugin.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		// Windows that are given need no measuring of the line: gRPC else sends a ping
		// with nearly every message that comes, which wakes both sides once more.
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
	}
}

// reattach connects to a plugin that an earlier worker started.
func (h *Host) reattach(ctx context.Context, r record) (*process, error) {
	if r.BootID != h.config.BootID || !pidfd.Alive(r.PID, r.StartTicks) {
		return nil, fmt.Errorf("reattach %s: process %d is gone", r.Name, r.PID)
	}
	client := plugin.NewClient(h.clientConfig(&plugin.ClientConfig{Reattach: &plugin.ReattachConfig{
		Protocol: plugin.ProtocolGRPC, ProtocolVersion: r.Protocol, Pid: r.PID,
		Addr: &net.UnixAddr{Name: r.Socket, Net: "unix"},
	}}))
	p, err := connect(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("reattach %s: %w", r.Name, err)
	}
	p.record, p.foreign = r, true
	return p, nil
}

// handshakeError is an error of go-plugin in one line. It follows the line that
// it could not read with pages of guesses about file modes.
func handshakeError(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	said, ok := strings.CutPrefix(line, "Unrecognized remote plugin message:")
	said = strings.TrimSpace(said)
	switch {
	case !ok:
		return err
	case said == "":
		return errors.New("it ended, or closed its standard output, before it said that it is a plugin")
	default:
		return fmt.Errorf("it is no runner plugin: it printed %q", said)
	}
}

// connect dispenses the service and makes the first call, the health check: it
// also tells the plugin to let go of the worker's pipes.
func connect(ctx context.Context, client *plugin.Client) (*process, error) {
	protocol, err := client.Client()
	if err != nil {
		return nil, fmt.Errorf("start the plugin: %w", handshakeError(err))
	}
	raw, err := protocol.Dispense(runner.PluginName)
	if err != nil {
		return nil, fmt.Errorf("ask for the runner service: %w", err)
	}
	api, ok := raw.(runnerv1.RunnerServiceClient)
	if !ok {
		return nil, fmt.Errorf("ask for the runner service: got a %T", raw)
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info, err := api.GetInfo(ctx, &runnerv1.GetInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask who the runner is: %w", err)
	}
	if info.GetProtocol() != runner.Protocol {
		return nil, fmt.Errorf("the plugin speaks protocol %d, this drover speaks %d", info.GetProtocol(), runner.Protocol)
	}
	return &process{client: client, api: api, info: info}, nil
}

// hangUp closes the connection to a plugin process that is gone. A call that was made
// in its last moments has begun to connect again, and would try for ever.
func (p *process) hangUp() {
	if protocol, err := p.client.Client(); err == nil {
		_ = protocol.Close() // it says farewell to nobody
	}
}

// discard ends a plugin process that has no job, and removes what it left.
func (h *Host) discard(p *process) {
	p.client.Kill()
	h.forget(&p.record)
}

// runFolder is a fresh 0700 folder for socket, journal and log of one plugin
// process. When the state folder's path is too long for a socket it lies in
// the temporary folder.
func (h *Host) runFolder(name string) (string, error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("name a folder: %w", err)
	}
	dir := filepath.Join(h.config.State, "run", name+"-"+hex.EncodeToString(random[:]))
	if len(dir) > maxSocket {
		dir = filepath.Join(os.TempDir(), tempPrefix+name+"-"+hex.EncodeToString(random[:]))
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the plugin's folder: %w", err)
	}
	return dir, nil
}

func (h *Host) recordFile(r *record) string {
	return filepath.Join(h.config.State, "plugins", filepath.Base(r.Dir)+".json")
}

func (h *Host) save(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the plugin record: %w", err)
	}
	failpoint.At(failpoint.WorkerRecordBefore)
	if err := durable.WriteTwice(h.recordFile(r), data, 0o600); err != nil {
		return fmt.Errorf("write the plugin record: %w", err)
	}
	failpoint.At(failpoint.WorkerRecordAfter)
	return nil
}

// forget removes what a plugin process left on disk.
func (h *Host) forget(r *record) {
	_ = durable.RemoveTwice(h.recordFile(r)) // one that is left is of a process that is gone
	_ = os.RemoveAll(r.Dir)
}

// sweep ends plugin processes of an earlier worker that have no record: it was killed
// before it could write one, while it was forgetting, or the record is lost. What such a
// process has left is settled by its exit journal, as that of one that died: a start in
// there must not be taken for one that never reached a plugin (P2, P17).
func (h *Host) sweep(records []record, lost []string) (left []record, err error) {
	run := filepath.Join(h.config.State, "run")
	entries, err := os.ReadDir(run)
	if err != nil {
		return nil, fmt.Errorf("look for plugins of an earlier worker: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		dirs = append(dirs, filepath.Join(run, e.Name()))
	}
	for _, base := range lost {
		// The other place of such folders.
		if dir := filepath.Join(os.TempDir(), base); strings.HasPrefix(base, tempPrefix) && isFolder(dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if slices.ContainsFunc(records, func(r record) bool { return r.Dir == dir }) {
			continue
		}
		base := filepath.Base(dir)
		if filepath.Dir(dir) == filepath.Clean(os.TempDir()) {
			base = strings.TrimPrefix(base, tempPrefix)
		}
		r := record{Name: base[:max(0, strings.LastIndex(base, "-"))], BootID: h.config.BootID, Dir: dir}
		if pid, ok := withMark(runner.DirVariable + "=" + dir); ok {
			h.config.Log.Info("ending a plugin without a record", "pid", pid, "path", dir)
			if st, err := pidfd.ReadStat(pid); err == nil {
				r.PID, r.StartTicks = pid, st.Ticks
			}
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
		left = append(left, r)
	}
	return left, nil
}

func isFolder(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// records reads what earlier workers left. One that is lost in both copies keeps nobody
// from starting: what its process has left is found by sweep, by the name of the folder.
func (h *Host) records() (out []record, lost []string, err error) {
	folder := filepath.Join(h.config.State, "plugins")
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, fmt.Errorf("look for plugins of an earlier worker: %w", err)
	}
	seen := map[string]bool{}
	for _, e := range entries {
		base, rest, ok := strings.Cut(e.Name(), ".json")
		if !ok || strings.HasPrefix(rest, damagedSuffix) || seen[base] {
			continue
		}
		seen[base] = true
		var r record
		path := filepath.Join(folder, base+".json")
		damage, err := durable.ReadTwice(path, func(data []byte) error { return r.parse(base, data) })
		switch {
		case err != nil:
			h.config.Log.Error("a plugin record cannot be read; its process is ended, and its jobs are settled by its exit journal", "path", path, "err", err)
			h.setAside(path)
			lost = append(lost, base)
			continue
		case damage != nil:
			h.config.Log.Warn("a plugin record was damaged and is written again from its second copy", "path", path, "err", damage)
		}
		out = append(out, r)
	}
	return out, lost, nil
}

// parse reads a record of the file of that name.
func (r *record) parse(base string, data []byte) error {
	var read record
	if err := json.Unmarshal(data, &read); err != nil {
		return fmt.Errorf("read a plugin record: %w", err)
	}
	if read.Name == "" || read.SHA256 == "" || filepath.Base(read.Dir) != base {
		return errors.New("read a plugin record: it is of another process, or not whole")
	}
	*r = read
	return nil
}

// damagedSuffix ends the name of what lay in the place of a record.
const damagedSuffix = ".damaged"

// setAside keeps a record that cannot be read for whoever wants to look at it.
func (h *Host) setAside(path string) {
	_ = os.RemoveAll(path + damagedSuffix)
	if err := os.Rename(path, path+damagedSuffix); err != nil {
		_ = os.RemoveAll(path)
	}
	_ = durable.RemoveTwice(path) // the second copy
}
