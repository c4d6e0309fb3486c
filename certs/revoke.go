package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// RevokedFile names the list of revoked certificates. A Source that is given
// it sees a revocation within 5 s; copies of it work in any certificate folder.
func (ca *CA) RevokedFile() string { return ca.file("revoked") }

// UnknownError is a word that means no certificate of the CA. It is a fs.ErrNotExist.
type UnknownError struct{ NameOrSerial string }

// Error implements error.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("no certificate has the name or serial %q", e.NameOrSerial)
}

// Is implements the test of errors.Is.
func (e *UnknownError) Is(target error) bool { return target == fs.ErrNotExist }

// Revoke revokes the certificate of a serial, or every one of a name ("w1"),
// of a role and name ("worker/w1") or of a whole identity, and returns their
// serials. It is idempotent. Nothing found is an *UnknownError.
func (ca *CA) Revoke(nameOrSerial string) ([]string, error) {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	defer unlock()
	all, err := ca.List()
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	var serials []string
	var lines strings.Builder
	for _, c := range all {
		if !c.is(nameOrSerial) {
			continue
		}
		serials = append(serials, c.Serial)
		if !c.Revoked {
			fmt.Fprintf(&lines, "%s %s %s\n", c.Serial, c.ID, time.Now().UTC().Format(time.RFC3339))
		}
	}
	if len(serials) == 0 {
		return nil, fmt.Errorf("revoke: %w", &UnknownError{nameOrSerial})
	}
	if lines.Len() == 0 {
		return serials, nil
	}
	old, err := os.ReadFile(ca.RevokedFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	if len(old) > 0 && !strings.HasSuffix(string(old), "\n") {
		old = append(old, '\n') // somebody edited it by hand
	}
	// Replaced whole: a Source never reads half a line.
	return serials, writeFile(ca.RevokedFile(), append(old, lines.String()...), 0o644)
}

// is tells whether a word of the command line means the certificate.
func (i Issued) is(nameOrSerial string) bool {
	if serial, ok := parseSerial(nameOrSerial); ok && serial == i.Serial {
		return true
	}
	names := []string{i.ID.Name, string(i.ID.Role) + "/" + i.ID.Name, i.ID.String()}
	return slices.Contains(names, nameOrSerial)
}

func readRevoked(path string) (map[string]bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read revoked serials: %w", err)
	}
	out, err := parseRevoked(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

// parseRevoked reads a list: a serial begins each line, the rest is for people,
// # begins a comment. A line that is none of this is an error rather than a
// certificate that silently stays good.
func parseRevoked(data []byte) (map[string]bool, error) {
	out := map[string]bool{}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		serial, ok := parseSerial(fields[0])
		if !ok {
			return nil, fmt.Errorf("line %d: %q is not a serial in hex", number, fields[0])
		}
		out[serial] = true
	}
	return out, nil
}
