package worker

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// accounts are users of a host on which root has a second name.
func accounts(name string) (*account, error) {
	uids := map[string]uint32{"root": 0, "toor": 0, "nobody": 65534, "ann": 1000}
	uid, ok := uids[name]
	if !ok {
		return nil, errors.New("no such user")
	}
	return &account{name: name, home: "/home/" + name, cred: Credential{UID: uid, GID: uid}}, nil
}

func TestP19AJobRunsAsRootOnlyWhereThePolicySaysSo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		root   bool
		policy Policy
		wanted string
		user   string // "" is the worker's own
		refuse string
	}{
		"root, silent policy":            {true, Policy{}, "", "", `write one of these lines in the worker's policy file: "user: nobody" or "allow_root: true"`},
		"root, users alone":              {true, Policy{Users: []string{"ann"}}, "", "", "is not set"},
		"root, root allowed":             {true, Policy{AllowRoot: true}, "", "", ""},
		"root, a default user":           {true, Policy{User: "nobody"}, "", "nobody", ""},
		"the default user by its name":   {true, Policy{User: "nobody"}, "nobody", "nobody", ""},
		"another than the default":       {true, Policy{User: "nobody"}, "ann", "", `add it to "users"`},
		"an allowed one":                 {true, Policy{User: "nobody", Users: []string{"ann"}}, "ann", "ann", ""},
		"root by its name":               {true, Policy{Users: []string{"root"}}, "root", "", "allow_root: true"},
		"root by another name":           {true, Policy{Users: []string{"toor"}}, "toor", "", `"toor" is root`},
		"root as the default":            {true, Policy{User: "toor"}, "", "", `"toor" is root`},
		"root by another name, allowed":  {true, Policy{Users: []string{"toor"}, AllowRoot: true}, "toor", "toor", ""},
		"root beside a default user":     {true, Policy{User: "nobody", AllowRoot: true}, "root", "", `add it to "users"`},
		"an ordinary worker":             {false, Policy{}, "", "", ""},
		"an ordinary worker, named user": {false, Policy{Users: []string{"ann"}}, "ann", "", "does not run as root"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &preparer{policy: c.policy, root: c.root, account: accounts}
			u, err := p.user(c.wanted)
			if c.refuse != "" {
				var e *errs.Error
				if !errors.As(err, &e) || e.Reason != job.ReasonPolicy || e.Field != "user" || !strings.Contains(e.Error()+e.Hint, c.refuse) {
					t.Fatalf("%v, %v, want %q", u, err, c.refuse)
				}
				return
			}
			got := ""
			if u != nil {
				got = u.name
			}
			if err != nil || got != c.user {
				t.Errorf("%q, %v, want %q", got, err, c.user)
			}
		})
	}
}

func TestADefaultUserThatCannotBeIsToldAtTheStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		root   bool
		policy Policy
		want   string
	}{
		{true, Policy{}, ""},
		{true, Policy{User: "nobody"}, ""},
		{false, Policy{User: "nobody"}, "does not run as root"},
		{true, Policy{User: "drover-no-such-user"}, "drover-no-such-user"},
		{true, Policy{User: "root"}, "allow_root: true"},
		{true, Policy{User: "root", AllowRoot: true}, ""},
	} {
		if err := c.policy.checkUser(c.root); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.policy, err, c.want)
		}
	}
}

func TestAWorkerSaysWhileItRefusesJobsWithoutUser(t *testing.T) {
	t.Parallel()
	since := time.Unix(7, 0)
	c := userCondition(&Policy{}, true, since)
	if c == nil || c.Since != since || !strings.Contains(c.Message, "allow_root: true") || !strings.Contains(c.Message, "user: nobody") {
		t.Errorf("%+v", c)
	}
	for _, p := range []Policy{{AllowRoot: true}, {User: "nobody"}} {
		if c := userCondition(&p, true, since); c != nil {
			t.Errorf("%+v: %+v", p, c)
		}
	}
	if c := userCondition(&Policy{}, false, since); c != nil {
		t.Errorf("an ordinary user: %+v", c)
	}
}

func TestPrivilegesOfThePolicyFile(t *testing.T) {
	t.Parallel()
	p, err := ParsePolicy("p.yaml", []byte("user: nobody\nallow_root: true\nno_new_privs: false\nrlimits: {nofile: 1024, core: 0, as: 2GiB, nproc: unlimited}\n"))
	if err != nil || p.User != "nobody" || !p.AllowRoot || p.noNewPrivs(&account{}) {
		t.Fatalf("%+v, %v", p, err)
	}
	limits, err := p.rlimits()
	want := []Rlimit{{unix.RLIMIT_AS, 2 << 30}, {unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, 1024}, {unix.RLIMIT_NPROC, unix.RLIM_INFINITY}}
	if err != nil || !reflect.DeepEqual(limits, want) {
		t.Errorf("%v, %v", limits, err)
	}
	for text, want := range map[string]string{
		"rlimits: {nofiles: 1}":                   `did you mean "nofile"?`,
		"rlimits: {nofile: -1}":                   "nofile",
		"rlimits: {nofile: many}":                 `"many" is not a number`,
		"rlimits: {as: 99999999999TiB}":           "as",
		"rlimits: {core: 1.5}":                    "core",
		"allow_root: perhaps":                     "p.yaml:1:13",
		"no_new_privs: 3":                         "p.yaml:1:15",
		"rlimits: [nofile]":                       "p.yaml:1:",
		"rlimits: {nofile: 18446744073709551616}": "nofile",
	} {
		if _, err := ParsePolicy("p.yaml", []byte(text)); errs.ReasonOf(err) != ReasonPolicyFile || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestNoNewPrivsIsTheDefaultForOtherUsers(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for _, c := range []struct {
		policy Policy
		user   *account
		want   bool
	}{
		{Policy{}, nil, false},
		{Policy{}, &account{}, true},
		{Policy{NoNewPrivs: &yes}, nil, true},
		{Policy{NoNewPrivs: &no}, &account{}, false},
	} {
		if got := c.policy.noNewPrivs(c.user); got != c.want {
			t.Errorf("%v for %v: %v", c.policy.NoNewPrivs, c.user, got)
		}
	}
}

// unrestricting is a runner of before there were restrictions.
type unrestricting struct{ *world }

func (unrestricting) Restricts(journal.Runner) bool { return false }

func TestARunnerThatWouldDropARestrictionGetsNoJob(t *testing.T) {
	t.Parallel()
	yes := true
	for _, policy := range []Policy{{NoNewPrivs: &yes}, {Rlimits: map[string]string{"core": "0"}}} {
		p := newPreparer(t, newWorld(), policy)
		o := order(1)
		h, err := p.prepare(t.Context(), o.Key, &o.Spec)
		if err != nil || h.launch.NoNewPrivs != (policy.NoNewPrivs != nil) || len(h.launch.Rlimits) != len(policy.Rlimits) {
			t.Errorf("%+v: %v, %+v", policy, err, h)
		}
		p.runners = unrestricting{newWorld()}
		o = order(2)
		if _, err := p.prepare(t.Context(), o.Key, &o.Spec); errs.ReasonOf(err) != job.ReasonPolicy || !strings.Contains(err.Error(), "no_new_privs") {
			t.Errorf("%+v: %v", policy, err)
		}
	}
}
