package e2e_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// loader is a way to make a program run other code by its environment. In texts
// EVIL is the folder of what is planted, and MARK the file that shows that it ran.
type loader struct {
	script string            // what is published
	env    map[string]string // what the request adds
}

// loaders are by program and variable. Each is tried against the program itself.
func loaders() map[string]loader {
	one := func(script, name, value string) loader { return loader{script, map[string]string{name: value}} }
	return map[string]loader{
		"bash PATH":            one("ls", "PATH", "EVIL/bin:/usr/bin:/bin"),
		"bash BASH_ENV":        one(":", "BASH_ENV", "EVIL/code.sh"),
		"bash function":        one("ls", "BASH_FUNC_ls%%", "() { touch MARK; }"),
		"bash PROMPT_COMMAND":  one("echo : | bash --norc -i", "PROMPT_COMMAND", "touch MARK"),
		"bash CDPATH":          one("cd sub && . ./lib", "CDPATH", "EVIL"),
		"bash HOME":            one(". ~/lib", "HOME", "EVIL/sub"),
		"bash loadable":        one("enable -f preload ls; :", "BASH_LOADABLES_PATH", "EVIL"),
		"bash TEXTDOMAINDIR":   {`: $"hello"`, map[string]string{"TEXTDOMAIN": "x", "TEXTDOMAINDIR": "EVIL/locale", "LC_ALL": "C.UTF-8"}},
		"sh ENV":               one("sh -i < /dev/null", "ENV", "EVIL/code.sh"),
		"script SHELL":         one("script -qc true /dev/null < /dev/null", "SHELL", "EVIL/tool"),
		"ld.so LD_PRELOAD":     one("ls", "LD_PRELOAD", "EVIL/preload"),
		"ld.so LD_AUDIT":       one("ls", "LD_AUDIT", "EVIL/preload"),
		"ld.so library path":   one("perl -e 1", "LD_LIBRARY_PATH", "EVIL/lib"),
		"libc GCONV_PATH":      one("echo x | iconv -f UTF-8 -t EVIL", "GCONV_PATH", "EVIL/gconv"),
		"python PYTHONPATH":    one("python3 -c 'import json'", "PYTHONPATH", "EVIL/python"),
		"python PYTHONHOME":    one("python3 -c pass", "PYTHONHOME", "EVIL/home"),
		"python user base":     one("python3 -c pass", "PYTHONUSERBASE", "EVIL/user"),
		"python HOME":          one("python3 -c pass", "HOME", "EVIL/userhome"),
		"python PYTHONSTARTUP": one("python3 -i < /dev/null", "PYTHONSTARTUP", "EVIL/code.py"),
		"python warnings":      {"python3 -c pass", map[string]string{"PYTHONWARNINGS": "all:0:antigravity.x:0:0", "BROWSER": "touch MARK %s"}},
		"python breakpoint":    {"python3 -c 'breakpoint()'", map[string]string{"PYTHONBREAKPOINT": "antigravity.x", "BROWSER": "touch MARK %s"}},
		"perl PERL5OPT":        one("perl -e 1", "PERL5OPT", "-Mbase;system(q(EVIL/tool))"),
		"perl PERL5LIB":        one("perl -e 'use strict'", "PERL5LIB", "EVIL/perl"),
		"perl PERLLIB":         one("perl -e 'use strict'", "PERLLIB", "EVIL/perl"),
		"perl PERL5DB":         {"perl -e 1", map[string]string{"PERL5OPT": "-d", "PERL5DB": "BEGIN { system q(touch MARK) } sub DB::DB {}"}},
		"ruby RUBYOPT":         one("ruby -e 1", "RUBYOPT", "-rEVIL/code.rb"),
		"ruby RUBYLIB":         one("ruby -e 'require %q(abbrev)'", "RUBYLIB", "EVIL/ruby"),
		"ruby GEM_HOME":        one("ruby -e 'gem %q(evil)' || :", "GEM_HOME", "EVIL/gems"),
		"node NODE_OPTIONS":    one("node -e 1", "NODE_OPTIONS", "--require EVIL/code.js"),
		"node NODE_PATH":       one("node -e 'require(\"code\")'", "NODE_PATH", "EVIL"),
		"node HOME":            one("node -e 'require(\"evil\")'", "HOME", "EVIL/userhome"),
		"java tool options":    one("java -version", "JAVA_TOOL_OPTIONS", "-agentpath:EVIL/preload"),
		"java JDK options":     one("java -version", "JDK_JAVA_OPTIONS", "-agentpath:EVIL/preload"),
		"java _JAVA_OPTIONS":   one("java -version", "_JAVA_OPTIONS", "-agentpath:EVIL/preload"),
		"git ssh command":      one("git ls-remote ssh://127.0.0.1/x || :", "GIT_SSH_COMMAND", "EVIL/tool"),
		"git GIT_SSH":          one("git ls-remote ssh://127.0.0.1/x || :", "GIT_SSH", "EVIL/tool"),
		"git configuration": {"git ls-remote ssh://127.0.0.1/x || :", map[string]string{
			"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.sshCommand", "GIT_CONFIG_VALUE_0": "EVIL/tool",
		}},
		"git parameters":       one("git ls-remote ssh://127.0.0.1/x || :", "GIT_CONFIG_PARAMETERS", "'core.sshCommand=EVIL/tool'"),
		"git global file":      one("git ls-remote ssh://127.0.0.1/x || :", "GIT_CONFIG_GLOBAL", "EVIL/gitconfig"),
		"git XDG":              one("git ls-remote ssh://127.0.0.1/x || :", "XDG_CONFIG_HOME", "EVIL/xdg"),
		"git HOME":             one("git ls-remote ssh://127.0.0.1/x || :", "HOME", "EVIL/userhome"),
		"git exec path":        one("git ls-remote https://127.0.0.1/x || :", "GIT_EXEC_PATH", "EVIL/gitexec"),
		"git proxy":            one("git ls-remote git://127.0.0.1/x || :", "GIT_PROXY_COMMAND", "EVIL/tool"),
		"git editor":           one("git config --edit --file /dev/null || :", "GIT_EDITOR", "EVIL/tool"),
		"git EDITOR":           one("git config --edit --file /dev/null || :", "EDITOR", "EVIL/tool"),
		"tar TAR_OPTIONS":      one("tar cf /dev/null /etc/hostname", "TAR_OPTIONS", "--checkpoint=1 --checkpoint-action=exec=EVIL/tool"),
		"make MAKEFLAGS":       one("make -f /dev/null || :", "MAKEFLAGS", `--eval=$$(shell\ EVIL/tool)`),
		"make GNUMAKEFLAGS":    one("make -f /dev/null || :", "GNUMAKEFLAGS", `--eval=$$(shell\ EVIL/tool)`),
		"make MAKEFILES":       one("make -f /dev/null || :", "MAKEFILES", "EVIL/makefile"),
		"rsync RSYNC_RSH":      one("rsync 127.0.0.1:/x . || :", "RSYNC_RSH", "EVIL/tool"),
		"rsync program":        one("rsync rsync://127.0.0.1/x . || :", "RSYNC_CONNECT_PROG", "EVIL/tool"),
		"openssl OPENSSL_CONF": one("openssl version -d; openssl dgst /etc/hostname || :", "OPENSSL_CONF", "EVIL/openssl.cnf"),
		"openssl modules":      one("openssl list -providers -provider preload || :", "OPENSSL_MODULES", "EVIL"),
	}
}

// TestP13NoVariableOfARequestChoosesTheCodeThatRuns: each loader is first seen to work
// on the program, and then refused by a worker without a word on variables, and by
// one whose policy allows every ordinary one.
func TestP13NoVariableOfARequestChoosesTheCodeThatRuns(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	p := newPlanted(c)
	scripts := map[string]string{"sub/lib": ":\n", "hello.py": "print('hello')\n", "hello.sh": "echo hello\n"}
	for name, l := range loaders() {
		scripts[scriptName(name)] = l.script + "\n"
	}
	folder := c.Scripts(c.Path("scripts"), scripts)
	for worker, policy := range map[string]string{"none": "", "all": "env: ['*']\n", "named": "env: [PATH, HOME]\n"} {
		file := c.Path(worker + ".yaml")
		p.write(file, policy+"allow_root: true\n", 0o600)
		c.Worker(worker, folder, "--policy", file)
	}
	for name, l := range loaders() {
		t.Run(name, func(t *testing.T) {
			p.mustExecute(t, filepath.Join(folder, scriptName(name)), p.environ(l.env))
			for _, worker := range []string{"none", "all"} {
				args := []string{"run", "--worker", worker}
				for _, kv := range p.environ(l.env) {
					args = append(args, "--env", kv)
				}
				r := c.Run(append(args, scriptName(name))...)
				if r.Code != 126 && r.Code != 125 || !strings.Contains(r.Stderr, "env") || p.executed() {
					t.Errorf("on the worker %q: exit %d, executed: %v: %s", worker, r.Code, p.executed(), r.Stderr)
				}
			}
		})
	}
	// Where an owner lets requests choose PATH and HOME, they choose what the script
	// finds, and still not what runs the script. An interpreter that is a script by
	// itself and looks up its own in PATH is refused.
	for _, script := range []string{"hello.sh", "hello.py"} {
		for _, kv := range p.environ(map[string]string{"PATH": "EVIL/bin", "HOME": "EVIL/userhome"}) {
			if r := c.Run("run", "--worker", "named", "--env", kv, script); (r.Code != 0 || r.Stdout != "hello\n") && r.Code != 126 || p.executed() {
				t.Errorf("%s with %s: exit %d, executed: %v: %s", script, kv, r.Code, p.executed(), r.Stderr)
			}
		}
	}
}

func scriptName(loader string) string { return strings.ReplaceAll(loader, " ", "_") + ".sh" }

// planted is what a caller of evil intent has put on the host.
type planted struct {
	t      testing.TB
	evil   string
	mark   string
	python string // folder of the interpreter itself
}

func newPlanted(c *cluster.Cluster) *planted {
	c.T.Helper()
	p := &planted{t: c.T, evil: c.Path("evil"), mark: c.Path("mark")}
	for _, program := range []string{"cc", "perl", "ruby", "node", "java", "git", "tar", "make", "rsync", "openssl", "script", "iconv", "python3"} {
		if _, err := exec.LookPath(program); err != nil {
			c.T.Fatalf("this test needs %s: install perl, ruby, nodejs, default-jre-headless, git, tar, make, rsync, openssl, gcc, bsdutils and libc-bin", program)
		}
	}
	out, err := exec.Command("python3", "-c", "import os, sys; print(os.path.dirname(sys.executable)); print('python%d.%d' % sys.version_info[:2])").Output()
	if err != nil {
		c.T.Fatal(err)
	}
	fields := strings.Fields(string(out))
	p.python = fields[0]
	p.texts("lib/" + fields[1])
	p.objects()
	return p
}

// texts are what interpreters load. python is the folder of its modules.
func (p *planted) texts(python string) {
	tool := "#!/bin/sh\n/usr/bin/touch MARK\n"
	pth := "import os; os.system('touch MARK')\n"
	git := "[core]\nsshCommand = EVIL/tool\n"
	for name, text := range map[string]string{
		"bin/ls": tool, "bin/bash": tool, "bin/python3": tool, "tool": tool, "gitexec/git-remote-https": tool,
		"code.sh": "touch MARK\n", "sub/lib": "touch MARK\n",
		"python/json.py": pth,
		"home/" + python + "/encodings/__init__.py":          "import posix\nposix.system('touch MARK')\n",
		"user/" + python + "/site-packages/x.pth":            pth,
		"userhome/.local/" + python + "/site-packages/x.pth": pth,
		"code.py":                            pth,
		"perl/strict.pm":                     "package strict; system('touch MARK'); sub import {} 1;\n",
		"code.rb":                            "system('touch MARK')\n",
		"ruby/abbrev.rb":                     "system('touch MARK')\n",
		"gems/specifications/evil-1.gemspec": "system('touch MARK')\nGem::Specification.new { |s| s.name = 'evil'; s.version = '1' }\n",
		"code.js":                            "require('child_process').execSync('touch MARK')\n",
		"userhome/.node_modules/evil.js":     "require('child_process').execSync('touch MARK')\n",
		"userhome/.gitconfig":                git,
		"gitconfig":                          git,
		"xdg/git/config":                     git,
		"makefile":                           "$(shell touch MARK)\n",
		"gconv/gconv-modules":                "module INTERNAL EVIL// preload 1\n",
		"openssl.cnf":                        "openssl_conf = a\n[a]\nproviders = b\n[b]\nc = d\n[d]\nmodule = EVIL/preload.so\nactivate = 1\n",
		"locale/C.UTF-8/LC_MESSAGES/x.mo":    catalogue("hello", "$(touch MARK)"),
	} {
		p.write(filepath.Join(p.evil, name), p.fill(text), 0o755)
	}
}

// catalogue is a file of translations of GNU gettext with one text.
func catalogue(from, to string) string {
	const header = 28
	var b []byte
	for _, n := range []int{0x950412de, 0, 1, header, header + 8, 0, header + 16, len(from), header + 16, len(to), header + 17 + len(from)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return string(b) + from + "\x00" + to + "\x00"
}

// objects are what the loader loads. The function stands for one that perl wants.
func (p *planted) objects() {
	source := filepath.Join(p.evil, "preload.c")
	p.write(source, p.fill(`#include <fcntl.h>
void crypt_r(void) {}
unsigned la_version(unsigned v) { return v; }
__attribute__((constructor)) void begin(void) { open("MARK", O_CREAT | O_WRONLY, 0600); }
`), 0o600)
	object := filepath.Join(p.evil, "preload")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-w", "-o", object, source).CombinedOutput(); err != nil {
		p.t.Fatalf("compile: %v: %s", err, out)
	}
	data, err := os.ReadFile(object)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, name := range []string{"preload.so", "lib/libcrypt.so.1", "gconv/preload.so"} {
		p.write(filepath.Join(p.evil, name), string(data), 0o755)
	}
}

func (p *planted) write(file, text string, mode os.FileMode) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *planted) fill(text string) string {
	return strings.NewReplacer("EVIL//", "EVIL//", "-t EVIL", "-t EVIL", "EVIL", p.evil, "MARK", p.mark).Replace(text)
}

func (p *planted) environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for name, value := range env {
		out = append(out, name+"="+p.fill(value))
	}
	return out
}

// executed tells whether the code ran, and forgets it.
func (p *planted) executed() bool { return os.Remove(p.mark) == nil }

// mustExecute runs a script with variables, without drover between.
func (p *planted) mustExecute(t *testing.T, script string, env []string) {
	t.Helper()
	cmd := exec.Command("bash", script)
	cmd.Dir = filepath.Dir(script)
	cmd.Env = append([]string{"PATH=" + p.python + ":/usr/local/bin:/usr/bin:/bin", "HOME=" + t.TempDir()}, env...)
	if out, err := cmd.CombinedOutput(); !p.executed() {
		t.Fatalf("%q does nothing to the program, so this test could not see it: %v: %s", env, err, out)
	}
}
