package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// revokedFile is the name of the unsigned list that earlier versions know: a serial
// in hex begins each line. It is read everywhere, and that of the CA is still written.
const revokedFile = "revoked"

// RevokedFile names the signed list of revoked certificates. A Source that is given
// it sees a revocation within 5 s; copies of it work in any certificate folder.
func (ca *CA) RevokedFile() string { return ca.file(crlFile) }

// RevokedFiles names every list of the CA: RevokedFile and that of earlier versions.
func (ca *CA) RevokedFiles() []string { return []string{ca.RevokedFile(), ca.file(revokedFile)} }

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
	for _, c := range all {
		if c.is(nameOrSerial) {
			serials = append(serials, c.Serial)
		}
	}
	if len(serials) == 0 {
		return nil, fmt.Errorf("revoke: %w", &UnknownError{nameOrSerial})
	}
	if err := ca.signRevoked(slices.Clone(serials)); err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	if err := ca.writeRevoked(all, serials); err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	return serials, nil
}

// writeRevoked adds serials to the list of earlier versions, under the folder's lock.
// Like the signed list it loses certificates that are long over.
func (ca *CA) writeRevoked(all []Issued, serials []string) error {
	path := ca.file(revokedFile)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known, err := parseRevoked(old)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	now := time.Now()
	over := map[string]bool{}
	var more strings.Builder
	for _, c := range all {
		switch over[c.Serial] = c.over(now); {
		case over[c.Serial] || known[c.Serial] || !slices.Contains(serials, c.Serial):
		default:
			fmt.Fprintf(&more, "%s %s %s\n", c.Serial, c.ID, now.UTC().Format(time.RFC3339))
		}
	}
	if more.Len() == 0 {
		return nil
	}
	var text strings.Builder
	for line := range strings.Lines(string(old)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			if serial, ok := parseSerial(fields[0]); ok && over[serial] {
				continue
			}
		}
		text.WriteString(strings.TrimSuffix(line, "\n") + "\n") // somebody may have edited it by hand
	}
	// Replaced whole: a Source never reads half a line.
	return writeFile(path, []byte(text.String()+more.String()), 0o644)
}

// is tells whether a word of the command line means the certificate.
func (i Issued) is(nameOrSerial string) bool {
	if serial, ok := parseSerial(nameOrSerial); ok && serial == i.Serial {
		return true
	}
	names := []string{i.ID.Name, string(i.ID.Role) + "/" + i.ID.Name, i.ID.String()}
	return slices.Contains(names, nameOrSerial)
}

// revoked returns every serial on the lists of the CA.
func (ca *CA) revoked() (map[string]bool, error) {
	out, err := readRevoked(ca.file(revokedFile))
	if err != nil {
		return nil, err
	}
	l, err := ca.readCRL()
	if err != nil {
		return nil, err
	}
	if l != nil {
		maps.Copy(out, l.serials())
	}
	return out, nil
}

// readRevoked reads an unsigned list; a missing one revokes nothing.
func readRevoked(path string) (map[string]bool, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read revoked serials: %w", err)
	}
	out, err := parseRevoked(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

// parseRevoked reads an unsigned list: a serial begins each line, the rest is for people,
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
