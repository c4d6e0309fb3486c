package lifecycle

import (
	"errors"
	"syscall"
	"time"
)

// How long Inherit is patient.
const (
	patience = time.Second
	lookFor  = 5 * time.Millisecond
)

// Inherit calls take until it fails with another error than busy, or not at all, and
// returns what it returned last. A process that was killed counts as ended a moment
// before the last of its threads has let go of its files and sockets, and whoever starts
// the next one at once means the same lock or port. What is still busy after a second
// is really somebody's. Safe for concurrent use.
func Inherit(busy syscall.Errno, take func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(lookFor) {
		err := take()
		if !errors.Is(err, busy) || time.Now().After(end) {
			return err
		}
	}
}
