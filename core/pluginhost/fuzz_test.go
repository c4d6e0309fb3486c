package pluginhost

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/plugins/runner"
)

// FuzzManifest: whatever lies beside a plugin, it is taken only when it is about
// these bytes.
func FuzzManifest(f *testing.F) {
	const program = "#!/bin/sh\n"
	sum, err := sumFrom(strings.NewReader(program))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"name":"x","version":"v1","protocol":1,"sha256":"` + sum + `","commands":["x"]}`))
	f.Add([]byte(`{"name":"x","protocol":1,"sha256":""}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"name":"y"`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		dir := t.TempDir()
		file := filepath.Join(dir, "drover-runner-x")
		if err := os.WriteFile(file, []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".json", manifest, 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := Verify(dir, "x")
		if err == nil && (m.Name != "x" || m.SHA256 != sum || m.Protocol != runner.Protocol || !strings.Contains(string(manifest), sum)) {
			t.Errorf("%q is taken as %+v", manifest, m)
		}
	})
}

// FuzzRecord: a record of an earlier worker is read or set aside, and keeps nobody from
// starting.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"name":"bash","version":"v1","pid":77,"start_ticks":5,"boot_id":"b","socket":"/s","dir":"/d/x","sha256":"0","protocol":1}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"pid":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		state := t.TempDir()
		if err := os.Mkdir(filepath.Join(state, "plugins"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(state, "plugins", "x.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		h := &Host{config: Config{State: state, Log: slog.New(slog.DiscardHandler)}}
		records, lost, err := h.records()
		if err != nil || len(records)+len(lost) != 1 {
			t.Errorf("%q gives %d records and %d that are lost, %v", data, len(records), len(lost), err)
		}
	})
}
