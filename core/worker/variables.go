package worker

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/job"
)

// This file is the one list of environment variables that requests may set.

// freeVariables are names, and globs of names, that every request may set: those
// made for it, and those that change how a program prints, not what it runs.
var freeVariables = []string{
	"APP_*", "DROVER_ARG_*", "LANG", "LC_*", "TZ", "TERM", "COLORTERM", "COLUMNS", "LINES",
	"NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "DEBUG", "VERBOSE",
	"PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED",
	"PYTHONFAULTHANDLER", pythonWarnings,
}

// pythonWarnings is free without a dot: Python imports the module of a category such
// as "ignore::module.Class" before the script begins.
const pythonWarnings = "PYTHONWARNINGS"

// refusedVariables make an interpreter or the loader run code that nobody
// published. No policy allows them (P13).
var refusedVariables = []string{
	"LD_*", "DYLD_*", "PYTHON*", "PERL5*", "PERLLIB", "RUBYOPT", "RUBYLIB", "NODE_OPTIONS", "NODE_PATH",
	"BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "BASH_LOADABLES_PATH", "PS4", "PROMPT_COMMAND",
	"GCONV_PATH", "GLIBC_TUNABLES", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS",
}

// namedVariables are known to choose programs, files of settings that name programs,
// or folders that code is loaded from. A policy allows them by their own name only:
// an owner who writes "*" or "G*" does not mean them.
var namedVariables = []string{
	"PATH", "HOME", "IFS", "SHELL", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "CDPATH", "FPATH", "GLOBIGNORE", "PWD", "OLDPWD",
	"ANSIBLE_*", "ANT_*", "AWKLIBPATH", "AWKPATH", "AWS_CONFIG_FILE", "BASH_*", "BROWSER", "BUNDLE_*", "CARGO_*", "CATALINA_*", "CLASSPATH",
	"COMPILER_PATH", "CONDA_*", "COR_*", "CORECLR_*", "CPATH", "CURL_HOME", "C_INCLUDE_PATH", "DOCKER_*", "DOTNET_*", "EDITOR",
	"ELIXIR_*", "EMACSLOADPATH", "ERL_*", "EXINIT", "FCEDIT", "GCC_*", "GEM_*", "GIO_*", "GIT_*", "GNUMAKEFLAGS", "GNUPGHOME", "GO*",
	"GRADLE_*", "GREP_OPTIONS", "GTK_*", "GUILE_*", "GZIP", "HELM_*", "HOSTALIASES", "INPUTRC", "JAVA_*", "JDK_*", "JULIA_*", "KRB5*",
	"KUBE*", "LANGUAGE", "LESS*", "LIBRARY_PATH", "LOCPATH", "LUA_*", "M4PATH", "MAKE*", "MALLOC_*", "MANPAGER", "MAVEN_*", "MFLAGS",
	"NLSPATH", "NODE_*", "NPM_*", "npm_*", "OPENSSL_*", "PAGER", "PERL*", "PG*", "PHP*", "PIP_*", "POSIXLY_CORRECT", "PSQLRC", "QML*",
	"QT_*", "R_*", "RES_OPTIONS", "RESOLV_*", "RSYNC_*", "RUBY*", "RUSTC*", "RUSTFLAGS", "SBT_OPTS", "SSH_*", "SSL*", "SUDO_*",
	"SYSTEMD_*", "TAPE", "TAR_OPTIONS", "TCL*", "TERMCAP", "TERMINFO*", "TEXTDOMAIN*", "TF_CLI_*", "UNZIP*", "VIM*", "VIRTUAL_ENV",
	"VISUAL", "WGETRC", "XDG_*", "XZ_*", "ZDOTDIR", "ZIP*", "AR", "CC", "CXX", "LD", "CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS",
}

// RefusesEnv says why a request may not set the variable to the value, and what its
// sender or the worker's owner can do about it; "" is allowed.
func (p *Policy) RefusesEnv(name, value string) (why, hint string) {
	line := fmt.Sprintf("write in the worker's policy file: env: [%s]", quoted(append(slices.Clone(p.Env), name)))
	switch {
	case !ordinaryName(name):
		return "is not a name of letters, digits and underscores", ""
	case name == job.EnvArrayIndex:
		return "", "" // it belongs to the request, as arguments do
	case name == pythonWarnings && strings.Contains(value, "."):
		return "names a module, which Python would import before the script", "name the categories of Python itself, such as error::DeprecationWarning"
	case matches(freeVariables, name):
		return "", ""
	case strings.HasPrefix(name, "DROVER_"):
		return "belongs to drover", fmt.Sprintf("name it DROVER_ARG_%s", strings.TrimPrefix(name, "DROVER_"))
	case matches(refusedVariables, name):
		return "changes how programs load code, and no policy allows it", ""
	case slices.Contains(p.Env, name):
		return "", ""
	case matches(namedVariables, name):
		return "can change which code runs, and the worker's policy does not name it", line
	case matches(p.Env, name):
		return "", ""
	default:
		return "the worker's policy does not allow it", fmt.Sprintf("name it APP_%s, or %s", strings.TrimLeft(name, "_"), line)
	}
}

// checkEnv refuses what is no glob, and names that could never be allowed.
func (p *Policy) checkEnv() error {
	for i, g := range p.Env {
		if _, err := path.Match(g, ""); err != nil || g == "" {
			return fmt.Errorf("env[%d]: %q is not a name or glob", i, g)
		}
		if strings.ContainsAny(g, `*?[\`) {
			continue
		}
		if why, _ := p.RefusesEnv(g, ""); why != "" {
			return fmt.Errorf("env[%d]: %q %s", i, g, why)
		}
	}
	return nil
}

func matches(globs []string, name string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		ok, err := path.Match(glob, name)
		return err == nil && ok
	})
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(out, ", ")
}

// ordinaryName tells whether s is a shell's idea of a variable name. Names such
// as BASH_FUNC_ls%% are not, and define functions.
func ordinaryName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
