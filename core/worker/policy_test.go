package worker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
)

func TestPolicyFile(t *testing.T) {
	t.Parallel()
	p, err := ParsePolicy("policy.yaml", []byte(`# what others may do here
commands:
  - uname
  - /usr/bin/ruby
users: [nobody]
env: ["APP_*", LANG]
workdirs: [/srv]
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Commands) != 2 || !p.AllowsUser("nobody") || p.AllowsUser("root") {
		t.Errorf("%+v", p)
	}
	for dir, want := range map[string]bool{"/srv": true, "/srv/a": true, "/srvx": false, "/": false} {
		if p.AllowsWorkdir(dir) != want {
			t.Errorf("workdir %s: %v", dir, !want)
		}
	}
	for name, want := range map[string]bool{"APP_X": true, "LANG": true, "HOME": false, "LD_PRELOAD": false} {
		if _, ok := p.AllowsEnv(name); ok != want {
			t.Errorf("env %s: %v", name, ok)
		}
	}
	if p, err := ParsePolicy("empty.yaml", nil); err != nil || len(p.Commands) != 0 {
		t.Errorf("an empty file: %+v, %v", p, err)
	}
}

func TestPolicyErrorsNameTheLineAndTheNearestKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"unknown key": {"users: [a]\ncomands: [x]\n", `p.yaml:2:1: unknown key "comands", did you mean "commands"?`},
		"tag":         {"users: !x", `p.yaml:1:8: tags such as "!x" are not supported`},
		"type":        {"users: [a]\n\ncommands: 3\n", "p.yaml:3:11: "},
		"syntax":      {"users: [a\ncommands: x", "p.yaml:"},
		"relative":    {"commands: [bin/x]", "commands[0]"},
		"unclean":     {"commands: [/usr/../x]", "commands[0]"},
		"no user":     {`users: [a, ""]`, "users[1]"},
		"glob":        {`env: ["[a"]`, "env[0]"},
		"workdir":     {"workdirs: [srv]", "workdirs[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParsePolicy("p.yaml", []byte(c.text))
			if errs.KindOf(err) != errs.Invalid || errs.ReasonOf(err) != ReasonPolicyFile || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
		})
	}
}

func TestReadPolicy(t *testing.T) {
	t.Parallel()
	if p, err := ReadPolicy(""); err != nil || len(p.Commands) != 0 {
		t.Errorf("no file: %+v, %v", p, err)
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if _, err := ReadPolicy(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte(`commands: ["*"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := ReadPolicy(file); err != nil || p.Commands[0] != "*" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestP13CommandsOfThePolicy(t *testing.T) {
	t.Parallel()
	find := func(name string) (string, error) {
		switch name {
		case "uname", "ruby":
			return "/usr/bin/" + name, nil
		}
		if filepath.IsAbs(name) {
			return name, nil
		}
		return "", errors.New("not found")
	}
	p := Policy{Commands: []string{"uname", "/usr/bin/ruby", "later"}}
	for command, want := range map[string]bool{
		"uname": true, "/usr/bin/uname": true, "/tmp/uname": false, "ruby": true, "/usr/bin/ruby": true,
		"later": true, "sh": false, "": false, "./uname": false, "/usr/bin/../bin/uname": false,
	} {
		if got := p.AllowsCommand(command, find); got != want {
			t.Errorf("%q: %v", command, got)
		}
	}
	all := Policy{Commands: []string{"*"}}
	if !all.AllowsCommand("anything", find) {
		t.Error("* does not allow all")
	}
	none := Policy{}
	if none.AllowsCommand("uname", find) {
		t.Error("the zero policy allows a command")
	}
}

func TestEnvironmentNamesThatChangeCodeAreNeverAllowed(t *testing.T) {
	t.Parallel()
	p := Policy{Env: []string{"*"}}
	for _, name := range []string{
		"LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS", "RUBYOPT",
		"PERL5LIB", "PERL5OPT", "DROVER_MARK", "DROVER_JOB_ID", "BASH_FUNC_ls%%", "A=B", "1A", "", "a b",
	} {
		if why, ok := p.AllowsEnv(name); ok || why == "" {
			t.Errorf("%q is allowed", name)
		}
	}
	for _, name := range []string{"A", "_x", "PATH", "HOME", "ENVIRONMENT", "PY", "LDAP_URL", "DROVER_ARRAY_INDEX"} {
		if _, ok := p.AllowsEnv(name); !ok {
			t.Errorf("%q is refused", name)
		}
	}
	narrow := Policy{Env: []string{"APP_*"}}
	if _, ok := narrow.AllowsEnv("DROVER_ARRAY_INDEX"); !ok {
		t.Error("which job of an array it is is kept from the job")
	}
}
