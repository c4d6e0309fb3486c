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
	for name, want := range map[string]bool{"APP_X": true, "LANG": true, "X": false, "HOME": false, "LD_PRELOAD": false} {
		if why, _ := p.RefusesEnv(name, ""); (why == "") != want {
			t.Errorf("env %s: %q", name, why)
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
		"never":       {`env: ["A_*", LD_PRELOAD]`, `env[1]: "LD_PRELOAD" changes how programs load code, and no policy allows it`},
		"of drover":   {`env: [DROVER_MARK]`, `env[0]: "DROVER_MARK" belongs to drover`},
		"no variable": {`env: ["BASH_FUNC_ls%%"]`, "env[0]"},
		"interpreter": {`interpreters: ["*"]`, "interpreters[0]"},
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

func refuses(t *testing.T, p Policy, name, value, why, hint string) {
	t.Helper()
	gotWhy, gotHint := p.RefusesEnv(name, value)
	if gotWhy == "" || !strings.Contains(gotWhy, why) || !strings.Contains(gotHint, hint) {
		t.Errorf("%s=%s with %v: %q, %q; want %q, %q", name, value, p.Env, gotWhy, gotHint, why, hint)
	}
}

func allows(t *testing.T, p Policy, name, value string) {
	t.Helper()
	if why, _ := p.RefusesEnv(name, value); why != "" {
		t.Errorf("%s=%s with %v is refused: %s", name, value, p.Env, why)
	}
}

func TestP13VariablesThatChangeCodeAreNeverAllowed(t *testing.T) {
	t.Parallel()
	for _, p := range []Policy{{}, {Env: []string{"*"}}, {Env: []string{"LD_*", "PYTHON*", "[A-Z]*"}}} {
		for _, name := range []string{
			"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "SHELLOPTS", "PS4", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME",
			"PYTHONINSPECT", "PYTHONUSERBASE", "PYTHONBREAKPOINT", "NODE_OPTIONS", "RUBYOPT", "PERL5LIB", "PERL5OPT", "PERL5DB", "_JAVA_OPTIONS",
		} {
			refuses(t, p, name, "x", "no policy allows it", "")
		}
		for _, name := range []string{"DROVER_MARK", "DROVER_JOB_ID", "DROVER_SECRETS", "DROVER_"} {
			refuses(t, p, name, "x", "belongs to drover", "DROVER_ARG_")
		}
		for _, name := range []string{"BASH_FUNC_ls%%", "BASH_FUNC_ls()", "A=B", "1A", "", "a b", "A-B", "Ä", "A\x00", "A\n"} {
			refuses(t, p, name, "x", "is not a name", "")
		}
	}
}

// TestP13VariablesOfARequestAreAnAllowList: without a policy, and with one that says
// nothing of them.
func TestP13VariablesOfARequestAreAnAllowList(t *testing.T) {
	t.Parallel()
	none := Policy{}
	for _, name := range []string{
		"APP_MODE", "APP_", "DROVER_ARG_X", "DROVER_ARRAY_INDEX", "LANG", "LC_ALL", "TZ", "TERM", "COLUMNS", "LINES", "NO_COLOR", "DEBUG", "VERBOSE",
		"PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE",
	} {
		allows(t, none, name, "1")
	}
	for _, name := range []string{"FOO", "A", "_x", "NAME", "ENVIRONMENT", "LDAP_URL", "app_x", "XAPP_X", "DEBUGGER"} {
		refuses(t, none, name, "1", "does not allow it", `env: ["`+name+`"]`)
	}
	refuses(t, Policy{Env: []string{"A_*"}}, "FOO", "1", "", `name it APP_FOO, or write in the worker's policy file: env: ["A_*", "FOO"]`)
}

func TestP13AModuleInPythonsWarningsIsRefused(t *testing.T) {
	t.Parallel()
	for _, p := range []Policy{{}, {Env: []string{"*"}}} {
		for _, value := range []string{"", "error", "ignore::DeprecationWarning", "default::UserWarning:mod:7", "error,ignore"} {
			allows(t, p, "PYTHONWARNINGS", value)
		}
		for _, value := range []string{"ignore::evil.Class", "all:0:antigravity.x:0:0", "error,ignore::a.B", "ignore:: evil.Class "} {
			refuses(t, p, "PYTHONWARNINGS", value, "module", "")
		}
	}
}

// TestP13AGlobDoesNotMeanVariablesThatChooseCode: an owner names those.
func TestP13AGlobDoesNotMeanVariablesThatChooseCode(t *testing.T) {
	t.Parallel()
	all := Policy{Env: []string{"*", "G*", "[P]ATH", "PATH?", "HOM*"}}
	for _, name := range []string{"FOO", "a_b", "LDAP_URL", "PY", "GREETING", "ENVIRONMENT"} {
		allows(t, all, name, "1")
	}
	for _, name := range []string{
		"PATH", "HOME", "IFS", "SHELL", "TMPDIR", "USER", "LOGNAME", "LANGUAGE", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "TAR_OPTIONS", "MAKEFLAGS", "MAKEFILES",
		"RSYNC_RSH", "OPENSSL_CONF", "LUA_INIT", "LUA_INIT_5_4", "AWKPATH", "GEM_HOME", "PHPRC", "ZDOTDIR", "R_PROFILE", "XDG_CONFIG_HOME", "PERLDB_OPTS",
		"DOTNET_STARTUP_HOOKS", "LESSOPEN", "CLASSPATH", "TEXTDOMAINDIR", "KUBECONFIG", "GOFLAGS", "PAGER", "EDITOR", "CC",
	} {
		refuses(t, all, name, "x", "does not name it", `"`+name+`"`)
		allows(t, Policy{Env: []string{name}}, name, "x")
	}
}

// FuzzPolicy: no file ends the worker, and none of them allows what no policy may.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("commands: [uname]\ninterpreters: [perl]\nusers: [nobody]\nenv: [\"APP_*\", FOO]\nworkdirs: [/srv]\nuploads: true\n"), "FOO")
	f.Add([]byte("users: !x"), "LD_PRELOAD")
	f.Add([]byte(`env: ["*"]`), "PYTHONPATH")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		p, err := ParsePolicy("p.yaml", data)
		if err != nil {
			if errs.ReasonOf(err) != ReasonPolicyFile || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q", err)
			}
			return
		}
		why, _ := p.RefusesEnv(name, "")
		if why == "" && (matches(refusedVariables, name) && !matches(freeVariables, name) || !ordinaryName(name)) {
			t.Errorf("%q is allowed by %q", name, data)
		}
	})
}
