package worker

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
)

// attemptID names an attempt to plugins, in DROVER_MARK and on disk.
func attemptID(k job.Key) string {
	return k.Job.String() + "." + strconv.FormatUint(uint64(k.Attempt), 10)
}

// parseAttemptID is the reverse of attemptID.
func parseAttemptID(id string) (job.Key, error) {
	name, number, ok := strings.Cut(id, ".")
	if !ok {
		return job.Key{}, fmt.Errorf("%q is not the id of an attempt", id)
	}
	u, err := uuid.Parse(name)
	if err != nil {
		return job.Key{}, fmt.Errorf("%q is not the id of an attempt: %w", id, err)
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return job.Key{}, fmt.Errorf("%q is not the id of an attempt: %w", id, err)
	}
	return job.Key{Job: u, Attempt: uint32(n)}, nil
}

// BootID returns the identity of the host's boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// newInstanceID names this process of the worker.
func newInstanceID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
