package worker

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// signalName returns SIGTERM and the like.
func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(s))
}
