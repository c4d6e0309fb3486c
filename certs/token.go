package certs

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrToken is any refusal of a join token; the text says which.
var ErrToken = errors.New("join token refused")

// TokenRequest says what a token is good for.
type TokenRequest struct {
	Role Role          // "" is worker
	TTL  time.Duration // 0 is one hour
	Uses int           // 0 is one
	Now  time.Time     // zero is the present
}

// tokenRecord lies in tokens/ under the sha256 of the secret: the folder
// gives no token away.
type tokenRecord struct {
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
}

// Token is a parsed join token: drover1.<secret>.<sha256 of the CA's key>.
type Token struct {
	Secret string
	Pin    string // the CA that the joining side must see
}

// ParseToken reads a token as it was printed.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != "drover1" || len(parts[2]) != 64 {
		return Token{}, fmt.Errorf("%w: it is not of the form drover1.SECRET.PIN", ErrToken)
	}
	return Token{parts[1], parts[2]}, nil
}

// NewToken makes a token that pins this CA.
func (ca *CA) NewToken(r TokenRequest) (string, error) {
	if r.Role == "" {
		r.Role = RoleWorker
	}
	if r.TTL == 0 {
		r.TTL = time.Hour
	}
	if r.Uses == 0 {
		r.Uses = 1
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	if r.Role != RoleWorker || r.TTL < 0 || r.Uses < 0 {
		return "", fmt.Errorf("make a token: only workers join by token, with a lifetime and uses above 0")
	}
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(random)
	if err := ca.writeToken(secret, tokenRecord{r.Role, r.Now.Add(r.TTL), r.Uses}); err != nil {
		return "", err
	}
	return "drover1." + secret + "." + ca.pin(), nil
}

func (ca *CA) tokenFile(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return filepath.Join(ca.dir, "tokens", hex.EncodeToString(sum[:]))
}

func (ca *CA) writeToken(secret string, rec tokenRecord) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode a token: %w", err)
	}
	return writeFile(ca.tokenFile(secret), data, 0o600)
}

// Redeem trades a token for one worker certificate of the given name; of the
// CSR only the key counts. Of several redeems of a last use exactly one wins,
// also across processes: the use is taken under a file lock before signing.
func (ca *CA) Redeem(secret, name string, csr []byte, now time.Time) (cert, bundle []byte, err error) {
	public, err := csrKey(csr)
	if err != nil {
		return nil, nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	role, err := ca.takeUse(secret, now)
	if err != nil {
		return nil, nil, err
	}
	cert, _, err = ca.Issue(IssueRequest{Name: name, Role: role, Public: public, Now: now, Hosts: []string{name}})
	if err != nil {
		return nil, nil, err
	}
	bundle, err = ca.Bundle()
	return cert, bundle, err
}

func (ca *CA) takeUse(secret string, now time.Time) (Role, error) {
	lock, err := os.OpenFile(filepath.Join(ca.dir, "tokens", ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("lock the tokens: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the tokens: %w", err)
	}
	data, err := os.ReadFile(ca.tokenFile(secret))
	if err != nil {
		return "", fmt.Errorf("%w: it is unknown or was used", ErrToken)
	}
	var rec tokenRecord
	if err := json.Unmarshal(data, &rec); err != nil {
		return "", fmt.Errorf("read a token: %w", err)
	}
	if now.After(rec.Expires) {
		return "", fmt.Errorf("%w: it expired at %s", ErrToken, rec.Expires.Format(time.RFC3339))
	}
	rec.Uses--
	if rec.Uses > 0 {
		return rec.Role, ca.writeToken(secret, rec)
	}
	if err := os.Remove(ca.tokenFile(secret)); err != nil {
		return "", fmt.Errorf("use up a token: %w", err)
	}
	return rec.Role, nil
}

// RenewFor signs a fresh certificate of an identity that the caller has proved.
func (ca *CA) RenewFor(id ID, csr []byte, hosts []string, now time.Time) (cert, bundle []byte, err error) {
	public, err := csrKey(csr)
	if err != nil {
		return nil, nil, err
	}
	if id.Cluster != ca.Cluster() {
		return nil, nil, fmt.Errorf("renew: %s is not of the cluster %s", id, ca.Cluster())
	}
	cert, _, err = ca.Issue(IssueRequest{Name: id.Name, Role: id.Role, Public: public, Now: now, Hosts: hosts})
	if err != nil {
		return nil, nil, err
	}
	bundle, err = ca.Bundle()
	return cert, bundle, err
}

func csrKey(der []byte) (any, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the certificate request: %w", err)
	}
	return csr.PublicKey, nil
}

// CheckPin verifies that a bundle holds the CA that a token pins.
func CheckPin(bundle []byte, pin string) error {
	for _, c := range parseCerts(bundle) {
		if pinOf(c) == pin {
			return nil
		}
	}
	return fmt.Errorf("%w: the scheduler's CA is not the one that the token names; you may be talking to a stranger", ErrToken)
}
