package scheduler

import (
	"fmt"

	"github.com/droverhq/drover/core/errs"
)

// Defaults of Budget.
const (
	DefaultCallerBytes = 64 << 20
	DefaultBytes       = 1 << 30
)

// bytesExhausted is the reason of a refusal: live jobs hold as many bytes as they may.
const bytesExhausted = "BYTES_EXHAUSTED"

// Budget bounds what live jobs hold, in bytes (P16): their input until no attempt
// needs it any more, and the rest of the request until the job has ended.
type Budget struct {
	Caller int64 // of the jobs of one caller; 0: DefaultCallerBytes
	All    int64 // of all; 0: DefaultBytes
}

// orDefault fills in what is not set.
func (b Budget) orDefault() Budget {
	if b.Caller == 0 {
		b.Caller = DefaultCallerBytes
	}
	if b.All == 0 {
		b.All = DefaultBytes
	}
	return b
}

// account counts what live jobs hold.
type account struct {
	budget Budget
	all    int64
	of     map[string]int64 // by caller
}

// check refuses a job that there is no room for. A caller without any job may always
// have one: a request has bounds of its own.
func (a *account) check(caller string, bytes int64) error {
	const hint = "wait until some of the jobs have begun or ended, or stop them"
	switch held := a.of[caller]; {
	case held > 0 && held+bytes > a.budget.Caller:
		return errs.E(opSubmit, errs.Exhausted, bytesExhausted,
			fmt.Errorf("the live jobs of %s hold %d bytes; with the %d bytes of this one it would be more than %d", caller, held, bytes, a.budget.Caller)).
			WithHint(hint)
	case a.all > 0 && a.all+bytes > a.budget.All:
		return errs.E(opSubmit, errs.Exhausted, bytesExhausted,
			fmt.Errorf("all live jobs hold %d bytes; with the %d bytes of this one it would be more than %d", a.all, bytes, a.budget.All)).
			WithHint(hint)
	}
	return nil
}

// add counts bytes of a caller's job; a negative number gives them back.
func (a *account) add(caller string, bytes int64) {
	a.all += bytes
	if a.of[caller] += bytes; a.of[caller] == 0 {
		delete(a.of, caller)
	}
}
