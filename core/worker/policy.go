package worker

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/yamlfile"
)

// ReasonPolicyFile is the reason of errors in a policy file.
const ReasonPolicyFile = "POLICY_FILE"

// Policy is what the owner of a host lets others do with it. It is read from a
// file of the worker; no scheduler can widen it (P13). The zero value allows
// scripts by runners, ordinary environment names, and nothing else.
type Policy struct {
	// Commands that may run without a script, or as interpreters of scripts
	// that no runner serves: names found in PATH, absolute paths, or "*".
	Commands []string `yaml:"commands"`
	// Users that jobs may run as, besides the worker's own.
	Users []string `yaml:"users"`
	// Env holds names, or globs of names, that requests may set; none: every
	// ordinary name. Names that change how programs load code are never allowed.
	Env []string `yaml:"env"`
	// Uploads allows scripts that are sent with a request. Whoever may start
	// jobs can then run any code that the runners take.
	Uploads bool `yaml:"uploads"`
	// Workdirs holds folders below which working folders may lie; none: any.
	Workdirs []string `yaml:"workdirs"`
}

// ReadPolicy reads a policy file; "" is the zero Policy.
func ReadPolicy(file string) (Policy, error) {
	if file == "" {
		return Policy{}, nil
	}
	data, err := yamlfile.Read(file)
	if err != nil {
		return Policy{}, errs.E("read policy", errs.Invalid, ReasonPolicyFile, err)
	}
	return ParsePolicy(file, data)
}

// ParsePolicy parses a policy strictly: an unknown key is an error that names
// its line and the nearest key there is.
func ParsePolicy(name string, data []byte) (Policy, error) {
	const op = "read policy"
	var p Policy
	if err := yamlfile.Decode(name, data, &p); err != nil {
		return Policy{}, errs.E(op, errs.Invalid, ReasonPolicyFile, err)
	}
	if err := p.check(); err != nil {
		return Policy{}, errs.E(op, errs.Invalid, ReasonPolicyFile, fmt.Errorf("%s: %w", name, err))
	}
	return p, nil
}

func (p *Policy) check() error {
	if err := job.CheckCommands(p.Commands); err != nil {
		return fmt.Errorf("commands: %w", err)
	}
	for i, c := range p.Commands {
		if c == "*" || c != "" && !strings.Contains(c, "/") || filepath.IsAbs(c) && filepath.Clean(c) == c {
			continue
		}
		return fmt.Errorf("commands[%d]: %q is neither a name nor a clean absolute path", i, c)
	}
	for i, u := range p.Users {
		if u == "" {
			return fmt.Errorf("users[%d]: is empty", i)
		}
	}
	for i, g := range p.Env {
		if _, err := path.Match(g, ""); err != nil || g == "" {
			return fmt.Errorf("env[%d]: %q is not a name or glob", i, g)
		}
	}
	for i, d := range p.Workdirs {
		if !filepath.IsAbs(d) {
			return fmt.Errorf("workdirs[%d]: %q is not absolute", i, d)
		}
	}
	return nil
}

// AllowsCommand tells whether command may run by itself. Names and paths are
// compared by what find makes of them, so "uname" and "/usr/bin/uname" are the
// same program and "/tmp/uname" is another.
func (p *Policy) AllowsCommand(command string, find func(string) (string, error)) bool {
	if slices.Contains(p.Commands, "*") || slices.Contains(p.Commands, command) {
		return true
	}
	resolved := resolveWith(find, command)
	return slices.ContainsFunc(p.Commands, func(c string) bool { return resolveWith(find, c) == resolved })
}

// resolveWith returns the absolute path of command, or command itself.
func resolveWith(find func(string) (string, error), command string) string {
	if file, err := find(command); err == nil {
		return file
	}
	return command
}

// AllowsUser tells whether jobs may run as the named user.
func (p *Policy) AllowsUser(name string) bool { return slices.Contains(p.Users, name) }

// AllowsEnv tells whether a request may set the variable; if not, why.
func (p *Policy) AllowsEnv(name string) (string, bool) {
	switch {
	case !ordinaryName(name):
		return "is not a name of letters, digits and underscores", false
	case name == job.EnvArrayIndex:
		return "", true // it belongs to the request, as arguments do
	case changesLoading(name):
		return "changes how programs load code, or belongs to drover", false
	case len(p.Env) == 0:
		return "", true
	}
	for _, glob := range p.Env {
		if ok, err := path.Match(glob, name); err == nil && ok {
			return "", true
		}
	}
	return "is not among the names that the worker's policy allows", false
}

// AllowsWorkdir tells whether a job may begin in the folder.
func (p *Policy) AllowsWorkdir(dir string) bool {
	if len(p.Workdirs) == 0 {
		return true
	}
	return slices.ContainsFunc(p.Workdirs, func(root string) bool {
		root = filepath.Clean(root)
		return dir == root || strings.HasPrefix(dir, strings.TrimSuffix(root, "/")+"/")
	})
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

// changesLoading tells whether a variable makes interpreters or the loader run
// code that nobody published (contract, section 3).
func changesLoading(name string) bool {
	switch name {
	case "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "NODE_OPTIONS", "NODE_PATH",
		"RUBYOPT", "RUBYLIB", "PERLLIB", "GCONV_PATH", "GLIBC_TUNABLES", "JAVA_TOOL_OPTIONS":
		return true
	}
	for _, prefix := range []string{"LD_", "PYTHON", "PERL5", "DROVER_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
