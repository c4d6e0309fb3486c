package worker

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/yamlfile"
)

// conditionNoUser tells that jobs without a user are refused.
const conditionNoUser = "NO_JOB_USER"

// rootRefusal is what the owner of a worker that runs as root is told until the
// policy says which it is to be.
const (
	rootRefusal = "the worker runs as root, and its policy neither names a user for jobs nor allows root"
	rootHint    = `write one of these lines in the worker's policy file: "user: nobody" or "allow_root: true"`
)

// Rlimit is a resource limit, soft and hard, see setrlimit(2).
type Rlimit struct {
	Resource int
	Value    uint64
}

// resources are the limits of setrlimit(2) that a policy can set.
var resources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"memlock": unix.RLIMIT_MEMLOCK, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "stack": unix.RLIMIT_STACK,
}

// rlimits returns the limits of the policy, in the order of their names.
func (p *Policy) rlimits() ([]Rlimit, error) {
	out := make([]Rlimit, 0, len(p.Rlimits))
	for _, name := range slices.Sorted(maps.Keys(p.Rlimits)) {
		resource, ok := resources[name]
		if !ok {
			return nil, fmt.Errorf("rlimits: there is no limit %q, did you mean %q?", name, yamlfile.Nearest(name, slices.Sorted(maps.Keys(resources))))
		}
		value, err := rlimitValue(p.Rlimits[name])
		if err != nil {
			return nil, fmt.Errorf("rlimits: %s: %w", name, err)
		}
		out = append(out, Rlimit{resource, value})
	}
	return out, nil
}

// rlimitValue reads a number, a size such as 2GiB, or "unlimited".
func rlimitValue(s string) (uint64, error) {
	if s == "unlimited" {
		return unix.RLIM_INFINITY, nil
	}
	number, unit := s, uint64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			number, unit = n, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n > math.MaxUint64/unit {
		return 0, fmt.Errorf(`%q is not a number such as 1024, a size such as 2GiB, or "unlimited"`, s)
	}
	return n * unit, nil
}

// noNewPrivs tells whether a job of the user, nil for the worker's own, is kept from
// gaining privileges by programs such as sudo.
func (p *Policy) noNewPrivs(u *account) bool {
	if p.NoNewPrivs != nil {
		return *p.NoNewPrivs
	}
	return u != nil
}

// RefusesJobsWithoutUser tells whether jobs that name no user are refused, for a
// worker that runs as root or not.
func (p *Policy) RefusesJobsWithoutUser(root bool) bool { return root && p.User == "" && !p.AllowRoot }

// checkUser refuses a policy whose default user cannot be.
func (p *Policy) checkUser(root bool) error {
	if p.User == "" {
		return nil
	}
	if !root {
		return errs.E("read policy", errs.Invalid, ReasonPolicyFile, fmt.Errorf("user: %q: the worker does not run as root and cannot become another user", p.User))
	}
	a, err := findAccount(p.User)
	if err != nil {
		return errs.E("read policy", errs.Invalid, ReasonPolicyFile, err)
	}
	if a.cred.UID == 0 && !p.AllowRoot {
		return errs.E("read policy", errs.Invalid, ReasonPolicyFile, fmt.Errorf("user: %q is root, which needs allow_root: true", p.User))
	}
	return nil
}

// user returns whom a job runs as; nil is the worker's own user.
func (p *preparer) user(wanted string) (*account, error) {
	name := cmp.Or(wanted, p.policy.User)
	switch {
	case name == "" && p.policy.RefusesJobsWithoutUser(p.root):
		return nil, refuse("user", job.ReasonPolicy, "is not set; %s", rootRefusal).WithHint("name one with --user, or %s", rootHint)
	case name == "":
		return nil, nil
	case wanted != "" && wanted != p.policy.User && !p.policy.AllowsUser(wanted):
		return nil, refuse("user", job.ReasonPolicy, "the worker's policy does not allow jobs to run as %q", name).
			WithHint(`add it to "users" in the worker's policy file`)
	case !p.root:
		return nil, refuse("user", job.ReasonPolicy, "the worker does not run as root and cannot become %q", name)
	}
	a, err := p.account(name)
	if err != nil {
		return nil, err
	}
	// By its number: root may have other names.
	if a.cred.UID == 0 && !p.policy.AllowRoot {
		return nil, refuse("user", job.ReasonPolicy, "%q is root, and the worker's policy does not allow jobs to run as root", name).
			WithHint(`write in the worker's policy file: allow_root: true`)
	}
	return a, nil
}

// restrict adds to a launch what the policy takes from every job. A runner that
// would not apply it gets no job: the owner would believe in what is not there.
func (p *preparer) restrict(h *prepared, u *account) error {
	limits, err := p.policy.rlimits()
	if err != nil {
		return refuse("rlimits", job.ReasonPolicy, "%w", err)
	}
	h.noNewPrivs, h.rlimits = p.policy.noNewPrivs(u), limits
	if (h.noNewPrivs || len(limits) > 0) && !p.runners.Restricts(h.runner) {
		return refuse("command", job.ReasonPolicy, "the runner %s applies neither no_new_privs nor rlimits, which this job must have", h.runner.Name).
			WithHint(`install a newer one, or write in the worker's policy file: no_new_privs: false, and no rlimits`)
	}
	return nil
}

// userCondition is shown while jobs without a user are refused.
func userCondition(p *Policy, root bool, since time.Time) *job.Condition {
	if !p.RefusesJobsWithoutUser(root) {
		return nil
	}
	return &job.Condition{Type: conditionNoUser, Since: since, Message: "jobs that name no user are refused: " + rootRefusal + "; " + rootHint}
}
