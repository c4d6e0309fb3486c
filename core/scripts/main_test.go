package scripts

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write puts a file, and the folders above it, into dir.
func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// folderWith makes a script folder: names and contents in turns.
func folderWith(t testing.TB, files ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "worker", "scripts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(files); i += 2 {
		write(t, dir, files[i], files[i+1])
	}
	return dir
}

// open makes a library that does not look by itself.
func open(t testing.TB, cfg Config) *Library {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run makes a library and lets it live until the test ends.
func run(t testing.TB, folders ...string) *Library {
	t.Helper()
	l := open(t, Config{Folders: folders})
	live(t, l)
	return l
}

func live(t testing.TB, l *Library) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func pin(t testing.TB, l *Library, path string) *Pin {
	t.Helper()
	p, err := l.Pin(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// until waits for a condition of the file system, which no channel tells of.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// untilIndex waits until the index is as wanted, woken by Changed.
func untilIndex(t testing.TB, l *Library, what string, condition func(map[string]job.ScriptInfo) bool) {
	t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		if condition(byPath(l)) {
			return
		}
		select {
		case <-l.Changed():
		case <-timeout:
			t.Fatalf("waited 15 s for %s; there are %d scripts", what, len(l.Index().Scripts))
		}
	}
}

func byPath(l *Library) map[string]job.ScriptInfo {
	all := map[string]job.ScriptInfo{}
	for _, s := range l.Index().Scripts {
		if _, ok := all[s.Path]; !ok {
			all[s.Path] = s
		}
	}
	return all
}

// generations lists what is on disk.
func generations(t testing.TB, l *Library) []string {
	t.Helper()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
