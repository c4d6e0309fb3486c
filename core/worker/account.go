package worker

import (
	"fmt"
	"os/user"
	"strconv"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/foreign"
)

// account is a user that a job runs as.
type account struct {
	name, home string
	cred       Credential
}

// user is the account for looks at files; nil for the worker's own.
func (a *account) user() *foreign.User {
	if a == nil {
		return nil
	}
	u := foreign.User(a.cred)
	return &u
}

// findAccount looks a user up by name.
func findAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, refuse("user", job.ReasonPolicy, "%v", err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, refuse("user", job.ReasonPolicy, "groups of %s: %v", name, err)
	}
	a := &account{name: u.Username, home: u.HomeDir}
	ids := append([]string{u.Uid, u.Gid}, groups...)
	nums := make([]uint32, len(ids))
	for i, s := range ids {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, refuse("user", job.ReasonPolicy, "%s has the id %q", name, s)
		}
		nums[i] = uint32(n)
	}
	a.cred = Credential{UID: nums[0], GID: nums[1], Groups: nums[2:]}
	return a, nil
}

// refuse makes the error of an order that names a field at fault.
func refuse(field, reason, format string, args ...any) *errs.Error {
	return errs.Field("check order", field, reason, format, args...)
}

// wrapRefusal keeps reason and field of a lower layer's word, or adds them.
func wrapRefusal(field, reason string, err error) error {
	if errs.ReasonOf(err) != "" {
		return err
	}
	return errs.E("prepare "+field, errs.Internal, reason, fmt.Errorf("%s: %w", field, err))
}
