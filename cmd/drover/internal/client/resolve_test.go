package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
)

// home is a user's surroundings: files by path below the home folder, and
// environment variables.
func home(t *testing.T, files, env map[string]string) func(string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "HOME", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) string {
		if name == "HOME" {
			return dir
		}
		return env[name]
	}
}

const (
	config = ".config/drover/config.yaml"
	dev    = ".local/share/drover/dev/dev.json"
	two    = "current: a\ncontexts:\n  a: {address: 'a:1', certs: /a}\n  b: {address: 'b:1', certs: /b}\n"
)

// TestTheClusterIsFoundInOrder: flags > environment > context
// file > the dev cluster.
func TestTheClusterIsFoundInOrder(t *testing.T) {
	t.Parallel()
	running := `{"address":"127.0.0.1:9","certs":"/dev","processes":[]}`
	cases := []struct {
		name       string
		flags      client.Flags
		env, files map[string]string
		want       client.Target
	}{
		{name: "nothing", want: client.Target{Address: client.DefaultAddress}},
		{name: "dev cluster", files: map[string]string{dev: running}, want: client.Target{Address: "127.0.0.1:9", Certs: "/dev"}},
		{name: "dev file half written", files: map[string]string{dev: `{"addr`}, want: client.Target{Address: client.DefaultAddress}},
		{name: "context over dev", files: map[string]string{dev: running, config: two}, want: client.Target{Address: "a:1", Certs: "/a"}},
		{
			name: "environment over context", files: map[string]string{config: two},
			env: map[string]string{"DROVER_ADDRESS": "e:1", "DROVER_CERTS": "/e"}, want: client.Target{Address: "e:1", Certs: "/e"},
		},
		{
			name: "context of the environment", files: map[string]string{config: two},
			env: map[string]string{"DROVER_CONTEXT": "b"}, want: client.Target{Address: "b:1", Certs: "/b"},
		},
		{
			name: "context flag over environment", files: map[string]string{config: two}, flags: client.Flags{Context: "b"},
			env: map[string]string{"DROVER_ADDRESS": "e:1", "DROVER_CONTEXT": "a"}, want: client.Target{Address: "b:1", Certs: "/b"},
		},
		{
			name: "flags over all", files: map[string]string{config: two, dev: running}, flags: client.Flags{"f:1", "/f", "b"},
			env: map[string]string{"DROVER_ADDRESS": "e:1", "DROVER_CERTS": "/e"}, want: client.Target{Address: "f:1", Certs: "/f"},
		},
		{
			name: "each for itself", files: map[string]string{dev: running}, flags: client.Flags{Address: "f:1"},
			want: client.Target{Address: "f:1", Certs: "/dev"},
		},
		{
			name: "own certificates", files: map[string]string{".local/share/drover/certs/tls.crt": "x"},
			want: client.Target{Address: client.DefaultAddress, Certs: "HOME/.local/share/drover/certs"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			getenv := home(t, c.files, c.env)
			got, err := client.Resolve(c.flags, getenv)
			if err != nil {
				t.Fatal(err)
			}
			c.want.Certs = strings.Replace(c.want.Certs, "HOME", getenv("HOME"), 1)
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestResolveSaysWhatIsWrongWithTheContexts(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		flags client.Flags
		env   map[string]string
		file  string
		want  string
		code  problem.Code
	}{
		{"unknown flag", client.Flags{Context: "x"}, nil, two, `there is no context "x"`, problem.NotFound},
		{"unknown in environment", client.Flags{}, map[string]string{"DROVER_CONTEXT": "y"}, two, `there is no context "y"`, problem.NotFound},
		{"unknown key", client.Flags{}, nil, "current: a\ncontext: {}\n", "config.yaml:2:1: ", problem.Usage},
		{"no YAML", client.Flags{}, nil, "current: [", "config.yaml", problem.Usage},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := client.Resolve(c.flags, home(t, map[string]string{config: c.file}, c.env))
			if err == nil || !strings.Contains(err.Error(), c.want) || problem.CodeOf(err) != c.code {
				t.Errorf("%v (exit %d), want %q (exit %d)", err, problem.CodeOf(err), c.want, c.code)
			}
		})
	}
}

func TestXDGFoldersAreHeeded(t *testing.T) {
	t.Parallel()
	getenv := home(t, nil, map[string]string{"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d"})
	if got := client.ConfigFile(getenv); got != "/c/drover/config.yaml" {
		t.Errorf("contexts in %s", got)
	}
	if got := client.DataFolder(getenv); got != "/d/drover" {
		t.Errorf("data in %s", got)
	}
}

func TestContextsSurviveSaving(t *testing.T) {
	t.Parallel()
	file := client.ConfigFile(home(t, nil, nil))
	in := client.Contexts{Current: "a", Contexts: map[string]client.Target{"b": {Address: "h:1", Certs: "/x y"}, "a": {Address: "[::1]:2"}}}
	if err := in.Save(file); err != nil {
		t.Fatal(err)
	}
	out, err := client.LoadContexts(file)
	if err != nil {
		t.Fatal(err)
	}
	if out.Current != "a" || out.Contexts["b"] != in.Contexts["b"] || out.Contexts["a"] != in.Contexts["a"] {
		t.Errorf("%+v", out)
	}
	if names := out.Names(); len(names) != 2 || names[0] != "a" {
		t.Errorf("%v", names)
	}
	if err := in.Save("/proc/none/config.yaml"); err == nil {
		t.Error("saved where nothing can be saved")
	}
}
