package worker

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/yamlfile"
)

// ReasonPolicyFile is the reason of errors in a policy file.
const ReasonPolicyFile = "POLICY_FILE"

const policyHint = "correct or restore the file; a worker without one runs scripts with its runners, and nothing else"

// Policy is what the owner of a host lets others do with it. It is read from a
// file of the worker; no scheduler can widen it (P13). The zero value allows
// scripts by runners, harmless environment variables, and nothing else.
type Policy struct {
	// Commands that may run without a script, or as interpreters of scripts
	// that no runner serves: names found in PATH, absolute paths, or "*".
	Commands []string `yaml:"commands"`
	// Interpreters may run scripts that no runner serves, and nothing else.
	Interpreters []string `yaml:"interpreters"`
	// User is whom jobs run as that name no user; "": the worker's own.
	User string `yaml:"user"`
	// Users that jobs may run as, besides User or the worker's own.
	Users []string `yaml:"users"`
	// AllowRoot lets jobs run as root, where the worker does.
	AllowRoot bool `yaml:"allow_root"`
	// NoNewPrivs keeps jobs from gaining privileges by exec, as through sudo. Unset:
	// those of other users than the worker's own.
	NoNewPrivs *bool `yaml:"no_new_privs"`
	// Rlimits are resource limits by their names in setrlimit(2) in lower case.
	Rlimits map[string]string `yaml:"rlimits"`
	// Env holds names, or globs of names, that requests may set besides the
	// harmless ones; see variables.go.
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
		return Policy{}, errs.E("read policy", errs.Invalid, ReasonPolicyFile, err).WithHint(policyHint)
	}
	return ParsePolicy(file, data)
}

// ParsePolicy parses a policy strictly: an unknown key is an error that names
// its line and the nearest key there is.
func ParsePolicy(name string, data []byte) (Policy, error) {
	const op = "read policy"
	var p Policy
	if err := yamlfile.Decode(name, data, &p); err != nil {
		return Policy{}, errs.E(op, errs.Invalid, ReasonPolicyFile, err).WithHint(policyHint)
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
		if c != "*" && !programName(c) {
			return fmt.Errorf("commands[%d]: %q is neither a name nor a clean absolute path", i, c)
		}
	}
	for i, c := range p.Interpreters {
		if !programName(c) {
			return fmt.Errorf("interpreters[%d]: %q is neither a name nor a clean absolute path", i, c)
		}
	}
	for i, u := range p.Users {
		if u == "" {
			return fmt.Errorf("users[%d]: is empty", i)
		}
	}
	for i, d := range p.Workdirs {
		if !filepath.IsAbs(d) {
			return fmt.Errorf("workdirs[%d]: %q is not absolute", i, d)
		}
	}
	if _, err := p.rlimits(); err != nil {
		return err
	}
	return p.checkEnv()
}

// programName reports whether s names a program: by a name for PATH, or absolutely.
func programName(s string) bool {
	return s != "" && s != "*" && !strings.Contains(s, "/") || filepath.IsAbs(s) && filepath.Clean(s) == s
}

// AllowsCommand tells whether command may run by itself. Names and paths are
// compared by what find makes of them, so "uname" and "/usr/bin/uname" are the
// same program and "/tmp/uname" is another.
func (p *Policy) AllowsCommand(command string, find func(string) (string, error)) bool {
	return slices.Contains(p.Commands, "*") || names(p.Commands, command, find)
}

// AllowsInterpreter tells whether command may run a script that is published.
func (p *Policy) AllowsInterpreter(command string, find func(string) (string, error)) bool {
	return p.AllowsCommand(command, find) || names(p.Interpreters, command, find)
}

// names tells whether the command is one of the programs.
func names(programs []string, command string, find func(string) (string, error)) bool {
	switch {
	case slices.Contains(programs, command):
		return true
	case len(programs) == 0:
		return false
	}
	resolved := resolveWith(find, command)
	return slices.ContainsFunc(programs, func(c string) bool { return resolveWith(find, c) == resolved })
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

// AllowsRealWorkdir tells whether a job may begin in a folder whose path has no links.
func (p *Policy) AllowsRealWorkdir(dir string) bool {
	real := Policy{Workdirs: slices.Clone(p.Workdirs)}
	for i, root := range real.Workdirs {
		if where, err := filepath.EvalSymlinks(root); err == nil {
			real.Workdirs[i] = where
		}
	}
	return real.AllowsWorkdir(dir)
}
