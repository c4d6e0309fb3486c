// Package certs is drover's certificate authority on disk: it makes a CA,
// issues, joins, renews and revokes leaf certificates, and serves them to TLS
// while the files below it change.
package certs

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a certificate may do; the RPC table of core/auth speaks of roles.
type Role string

// The roles.
const (
	RoleScheduler Role = "scheduler"
	RoleWorker    Role = "worker"
	RoleAdmin     Role = "admin"
	RoleOperator  Role = "operator"  // submit, stop, drain
	RoleSubmitter Role = "submitter" // own jobs
	RoleViewer    Role = "viewer"
)

// Roles lists every role.
func Roles() []Role {
	return []Role{RoleScheduler, RoleWorker, RoleAdmin, RoleOperator, RoleSubmitter, RoleViewer}
}

// ParseRole reads a role by name.
func ParseRole(s string) (Role, error) {
	for _, r := range Roles() {
		if string(r) == s {
			return r, nil
		}
	}
	return "", fmt.Errorf("role %q is none of scheduler, worker, admin, operator, submitter, viewer", s)
}

// server tells whether processes of the role listen.
func (r Role) server() bool { return r == RoleScheduler || r == RoleWorker }

// maxName is the length of the longest name.
const maxName = 63

// ErrName is the refusal of a name.
var ErrName = errors.New("not 1 to 63 letters, digits, dots, dashes, underscores")

// CheckName refuses names that are not 1 to 63 letters, digits, dots, dashes
// and underscores, from a letter or digit to a letter or digit: what is safe in
// a URI, a file name and a terminal.
func CheckName(name string) error {
	sign := func(c rune) bool { return strings.ContainsRune("._-", c) }
	strange := func(c rune) bool { return !alphanumeric(c) && !sign(c) }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, strange) || strings.TrimFunc(name, sign) != name {
		return fmt.Errorf("name %q is %w", name, ErrName)
	}
	return nil
}

func alphanumeric(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// ID is the identity that a certificate carries in its one URI SAN,
// spiffe://<cluster>/<role>/<name>. Nothing else in it is identity.
type ID struct {
	Cluster string
	Role    Role
	Name    string
}

// URI returns the identity as it stands in a certificate.
func (id ID) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Name}
}

// String returns the identity as a URI.
func (id ID) String() string { return id.URI().String() }

// Identify reads the identity of a leaf certificate. It refuses CA
// certificates and 0 or several URI SANs; it does not verify the chain.
func Identify(c *x509.Certificate) (ID, error) {
	if c.IsCA {
		return ID{}, errors.New("it is a CA certificate, not a leaf")
	}
	if len(c.URIs) != 1 {
		return ID{}, fmt.Errorf("it has %d URI names, not exactly one", len(c.URIs))
	}
	u := c.URIs[0]
	parts := strings.Split(u.Path, "/")
	if u.Scheme != "spiffe" || len(parts) != 3 || parts[0] != "" || u.RawQuery != "" || u.Fragment != "" {
		return ID{}, fmt.Errorf("%q is not spiffe://<cluster>/<role>/<name>", u)
	}
	role, err := ParseRole(parts[1])
	if err != nil {
		return ID{}, err
	}
	for _, n := range []string{u.Host, parts[2]} {
		if err := CheckName(n); err != nil {
			return ID{}, err
		}
	}
	id := ID{Cluster: u.Host, Role: role, Name: parts[2]}
	if u.String() != id.String() { // a user, an empty query, an escape
		return ID{}, fmt.Errorf("%q is not written as %s", u, id)
	}
	return id, nil
}

// Serial is the serial number of a certificate in lower-case hex, as it stands
// in issued/, in a list of revoked certificates and in an identity.
func Serial(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// parseSerial reads a serial as drover, openssl or a person writes it.
func parseSerial(s string) (string, bool) {
	s = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if len(s)%2 == 1 {
		s = "0" + s
	}
	for len(s) > 2 && strings.HasPrefix(s, "00") {
		s = s[2:] // ASN.1 writers add a zero byte; big.Int does not
	}
	_, err := hex.DecodeString(s)
	return s, err == nil && s != ""
}
