package certs

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/droverhq/drover/plugins/durable"
)

// ErrToken is any refusal of a join token; the text says which.
var ErrToken = errors.New("join token refused")

const tokenPrefix = "drover1"

// TokenRequest says what a token is good for.
type TokenRequest struct {
	Role Role          // "" is worker, and no other role joins by token
	TTL  time.Duration // 0 is one hour
	Uses int           // 0 is one
	Now  time.Time     // zero is the present
}

// tokenRecord lies in tokens/ under the sha256 of the secret: the folder
// gives no token away. Beside it, with usedSuffix, lies one that has no uses and tells
// those that are gone, until the token expires.
type tokenRecord struct {
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
	Used    []use     `json:"used,omitempty"`
}

// use is one that is gone: whoever has the key may ask for its certificate again, for
// the answer may have been lost.
type use struct {
	Key      string    `json:"key"` // sha256 in hex
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"` // of the certificate
}

const (
	usedSuffix = ".used"
	mostUsed   = 1000 // uses of one token that are kept, the newest
)

// of finds the use of a key.
func (r *tokenRecord) of(key string) (use, bool) {
	i := slices.IndexFunc(r.Used, func(u use) bool { return u.Key == key })
	if i < 0 {
		return use{}, false
	}
	return r.Used[i], true
}

// Token is a parsed join token: drover1.<secret>.<sha256 of the CA's key>.
type Token struct {
	Secret string
	Pin    string // the CA that the joining side must see, hex
}

// ParseToken reads a token as it was printed.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix || parts[1] == "" {
		return Token{}, fmt.Errorf("%w: it is not of the form %s.SECRET.PIN; copy it whole", ErrToken, tokenPrefix)
	}
	pin, err := hex.DecodeString(parts[2])
	if err != nil || len(pin) != sha256.Size {
		return Token{}, fmt.Errorf("%w: its last part is not the sha256 of a key; copy it whole", ErrToken)
	}
	return Token{parts[1], strings.ToLower(parts[2])}, nil
}

// NewToken makes a token that pins this CA. The secret is in no file.
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
	if r.Role != RoleWorker {
		return "", fmt.Errorf("make a token: only workers join by token; issue a certificate for the %s instead", r.Role)
	}
	if r.TTL < 0 || r.Uses < 0 {
		return "", fmt.Errorf("make a token: lifetime %v and uses %d must be above 0", r.TTL, r.Uses)
	}
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	defer unlock()
	a, err := ca.load()
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	if err := ca.sweepTokens(r.Now); err != nil {
		return "", err
	}
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(random)
	if err := writeToken(ca.tokenFile(secret), tokenRecord{Role: r.Role, Expires: r.Now.Add(r.TTL), Uses: r.Uses}); err != nil {
		return "", err
	}
	return tokenPrefix + "." + secret + "." + pinOf(a.cert), nil
}

func (ca *CA) tokenFile(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return filepath.Join(ca.dir, "tokens", hex.EncodeToString(sum[:]))
}

func writeToken(path string, rec tokenRecord) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode a token: %w", err)
	}
	return writeFile(path, data, 0o600)
}

func readToken(path string) (tokenRecord, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return tokenRecord{}, fmt.Errorf("read a token: %w", err)
	}
	var rec tokenRecord
	if err := json.Unmarshal(data, &rec); err != nil {
		return tokenRecord{}, fmt.Errorf("read the token %s: %w", path, err)
	}
	return rec, nil
}

// sweepTokens removes the tokens that nobody used in time.
func (ca *CA) sweepTokens(now time.Time) error {
	entries, err := os.ReadDir(ca.file("tokens"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look through the tokens: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // it is being written
		}
		f := ca.file("tokens/" + e.Name())
		rec, err := readToken(f)
		if err != nil || now.Before(rec.Expires) {
			continue // a damaged one is reported to whoever redeems it
		}
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("remove an expired token: %w", err)
		}
	}
	return nil
}

// Redeem trades a token, with or without its pin, for one worker certificate of
// the given name and the CA bundle; of the CSR only the key counts. Nothing else is
// looked at before the token: who has none learns nothing and costs nothing. Of
// several redeems of a last use exactly one wins, also across processes, and the use
// is gone for good before anybody has the certificate. Whoever redeems it once more
// with the same key and name, before it expires, gets the same certificate: the answer
// may have been lost. No use goes when ctx has ended. A token that is no good is
// ErrToken; a name that another worker's certificate has is fs.ErrExist and uses
// nothing up.
func (ca *CA) Redeem(ctx context.Context, token, name string, csr []byte, now time.Time) (cert, bundle []byte, err error) {
	path := ca.tokenFile(secretOf(token))
	rec, err := ca.checkToken(path, token, now)
	if err != nil {
		return nil, nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	public, err := csrKey(csr)
	if err != nil {
		return nil, nil, err
	}
	key, err := keyHash(public)
	if err != nil {
		return nil, nil, err
	}
	if made, err := ca.redeemed(rec, key, name, now); err == nil {
		return made.cert, made.bundle, nil
	}
	made, err := ca.issueAnew(IssueRequest{Name: name, Role: rec.Role, Public: public, Now: now, Hosts: []string{name}}, func(l *ledger, made issuance) error {
		rec, err := ca.checkToken(path, token, now) // again: another may have used it up
		if err != nil {
			return err
		}
		owed := rec.owes(key, l, now)
		if rec.Uses == 0 && !owed {
			return errUnknown()
		}
		if taken := l.inForce(ID{Cluster: ca.cluster, Role: rec.Role, Name: name}, now); len(taken) > 0 {
			return fmt.Errorf("join as %q: %w", name, &NameTakenError{taken[0].ID})
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("join as %q: %w", name, err)
		}
		return useUp(path, rec, use{key, made.serial, made.leaf.NotAfter}, owed)
	})
	if err == nil {
		return made.cert, made.bundle, durable.SyncFolder(filepath.Dir(path))
	}
	// The same key may have been faster on another connection.
	if rec, errToken := ca.checkToken(path, token, now); errToken == nil {
		if made, errUsed := ca.redeemed(rec, key, name, now); errUsed == nil {
			return made.cert, made.bundle, nil
		}
	}
	return nil, nil, err
}

// CheckToken tells whether a token is good; one that is not is ErrToken.
func (ca *CA) CheckToken(token string, now time.Time) error {
	_, err := ca.checkToken(ca.tokenFile(secretOf(token)), token, now)
	return err
}

// keyHash names a key.
func keyHash(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode a key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

var errNotRedeemed = errors.New("the key has no certificate by this token")

// redeemed returns the certificate that a key has by a token already.
func (ca *CA) redeemed(rec tokenRecord, key, name string, now time.Time) (issuance, error) {
	u, ok := rec.of(key)
	if !ok {
		return issuance{}, errNotRedeemed
	}
	l, err := ca.ledger()
	if err != nil {
		return issuance{}, err
	}
	c, ok := l.files[u.Serial+".pem"]
	c.Revoked = l.revoked[u.Serial]
	if !ok || c.ID.Name != name || !c.InForce(now) {
		return issuance{}, errNotRedeemed
	}
	a, err := ca.load()
	if err != nil {
		return issuance{}, err
	}
	bundle, err := ca.Bundle()
	return issuance{append(encodeCert(c.cert.Raw), encodeCerts(a.chain)...), u.Serial, bundle, c.cert}, err
}

// secretOf takes the secret out of a whole token, of one without its pin, or of
// itself: base64url has no dots.
func secretOf(token string) string {
	if rest, ok := strings.CutPrefix(token, tokenPrefix+"."); ok {
		token = rest
	}
	secret, _, _ := strings.Cut(token, ".")
	return secret
}

func (ca *CA) checkToken(path, token string, now time.Time) (tokenRecord, error) {
	if whole, err := ParseToken(token); err == nil {
		a, err := ca.load()
		if err != nil {
			return tokenRecord{}, err
		}
		if !slices.ContainsFunc(a.trust, func(c *x509.Certificate) bool { return pinOf(c) == whole.Pin }) {
			return tokenRecord{}, fmt.Errorf("%w: it is of another CA", ErrToken)
		}
	}
	rec, errLeft := readToken(path)
	used, errUsed := readToken(path + usedSuffix)
	switch {
	case errors.Is(errLeft, fs.ErrNotExist) && errors.Is(errUsed, fs.ErrNotExist):
		return tokenRecord{}, errUnknown()
	case errors.Is(errLeft, fs.ErrNotExist):
		rec, errLeft = used, nil
	case errors.Is(errUsed, fs.ErrNotExist):
		errUsed = nil
	}
	if err := errors.Join(errLeft, errUsed); err != nil {
		return tokenRecord{}, err
	}
	if !now.Before(rec.Expires) {
		return tokenRecord{}, fmt.Errorf("%w: it expired on %s", ErrToken, day(rec.Expires))
	}
	rec.Used = used.Used
	return rec, nil
}

func errUnknown() error { return fmt.Errorf("%w: it is unknown or was used", ErrToken) }

// owes tells whether a use of a key is gone whose certificate never came into its place,
// because the process died: it is still the key's.
func (r *tokenRecord) owes(key string, l *ledger, now time.Time) bool {
	u, ok := r.of(key)
	_, there := l.files[u.Serial+".pem"]
	return ok && !there && now.Before(u.NotAfter) // until then no copy is pruned
}

// useUp takes one use from a token, unless it was taken before, for a certificate that
// is about to be in its place; durable.SyncFolder makes that durable.
func useUp(path string, rec tokenRecord, u use, taken bool) error {
	used := append(slices.DeleteFunc(slices.Clone(rec.Used), func(o use) bool { return o.Key == u.Key }), u)
	// First, so that no use goes without a trace.
	if err := writeToken(path+usedSuffix, tokenRecord{Role: rec.Role, Expires: rec.Expires, Used: used[max(0, len(used)-mostUsed):]}); err != nil {
		return err
	}
	if taken {
		return nil
	}
	if rec.Uses > 1 {
		return writeToken(path, tokenRecord{Role: rec.Role, Expires: rec.Expires, Uses: rec.Uses - 1})
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("use up a token: %w", err)
	}
	return nil
}

// CheckPin verifies that a bundle holds the CA that a token pins.
func CheckPin(bundle []byte, pin string) error {
	cas, err := parseBundle(bundle)
	if err != nil {
		return fmt.Errorf("%w: read the scheduler's CA: %w", ErrToken, err)
	}
	if !slices.ContainsFunc(cas, func(c *x509.Certificate) bool { return pinOf(c) == pin }) {
		return fmt.Errorf("%w: the scheduler's CA is not the one that the token names; you may be talking to a stranger", ErrToken)
	}
	return nil
}
