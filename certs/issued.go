package certs

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Issued is one certificate that the CA signed.
type Issued struct {
	ID        ID
	Serial    string // hex
	NotBefore time.Time
	NotAfter  time.Time
	Revoked   bool

	cert   *x509.Certificate
	renews string        // serial of the certificate that it took the place of
	life   time.Duration // that was asked for; 0: the copy does not tell
}

// Headers of the copy of a certificate, above its bytes.
const (
	renewsHeader = "Renews"
	lifeHeader   = "Life"
)

func encodeIssued(der []byte, renews string, life time.Duration) []byte {
	b := &pem.Block{Type: "CERTIFICATE", Bytes: der, Headers: map[string]string{lifeHeader: life.String()}}
	if renews != "" {
		b.Headers[renewsHeader] = renews
	}
	return pem.EncodeToMemory(b)
}

// lifeAskedFor is how long the certificate was to be good: longer than it is when the
// CA that signed it ended before.
func (i Issued) lifeAskedFor() time.Duration {
	if i.life > 0 {
		return i.life
	}
	_, life := lifeOf(i.cert)
	return life
}

// InForce tells whether peers accept the certificate at a time.
func (i Issued) InForce(now time.Time) bool {
	return !i.Revoked && !now.Before(i.NotBefore) && !now.After(i.NotAfter)
}

// index is the folder issued/ at one moment. It is never written after it was made.
type index struct {
	files   map[string]Issued // by name; Revoked is not filled in
	changed time.Time         // of the folder
	// settled says that the folder had been left alone for longer than the clock of
	// its file system is coarse: while its time stays, it is the same.
	settled bool
}

// coarse is longer than a tick of any file system's clock.
const coarse = 2 * time.Second

// index looks into the folder. A certificate is read once: its file never changes.
func (ca *CA) index() (*index, error) {
	dir := ca.file("issued")
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	old := ca.seen.Load()
	if old == nil {
		old = &index{}
	}
	if old.settled && old.changed.Equal(info.ModTime()) {
		return old, nil
	}
	next := &index{changed: info.ModTime(), settled: time.Since(info.ModTime()) > coarse}
	if next.files, err = readIssued(dir, old.files); err != nil {
		return nil, err
	}
	ca.seen.Store(next)
	return next, nil
}

// readIssued reads a folder of certificates but for those that are known.
func readIssued(dir string, known map[string]Issued) (map[string]Issued, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	names, errRead := d.Readdirnames(-1)
	if err := errors.Join(errRead, d.Close()); err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	files := make(map[string]Issued, len(names))
	for _, name := range names {
		if !strings.HasSuffix(name, ".pem") {
			continue
		}
		c, ok := known[name]
		if !ok {
			c, err = readOneIssued(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue // another process has removed it meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("list certificates: %w", err)
			}
		}
		files[name] = c
	}
	return files, nil
}

func readOneIssued(path string) (Issued, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Issued{}, err
	}
	cs, err := parseCerts(data)
	if err != nil {
		return Issued{}, fmt.Errorf("read %s: %w", path, err)
	}
	first, _ := pem.Decode(data)
	id, err := Identify(cs[0])
	if err != nil {
		return Issued{}, fmt.Errorf("%s: %w", path, err)
	}
	life, err := time.ParseDuration(first.Headers[lifeHeader])
	if err != nil {
		life = 0 // an earlier version made the copy
	}
	return Issued{
		ID: id, Serial: Serial(cs[0]), NotBefore: cs[0].NotBefore, NotAfter: cs[0].NotAfter,
		cert: cs[0], renews: first.Headers[renewsHeader], life: life,
	}, nil
}

// ledger is what the CA knows of its certificates at one moment. It is read only.
type ledger struct {
	files   map[string]Issued // by the name of the copy; Revoked is not filled in
	revoked map[string]bool   // serials
}

// ledger reads the copies and the lists of what is revoked.
func (ca *CA) ledger() (*ledger, error) {
	ix, err := ca.index()
	if err != nil {
		return nil, err
	}
	return ca.ledgerOf(ix)
}

// recent is ledger with the copies as they were read last: for what is looked at once
// more under the folder's lock.
func (ca *CA) recent() (*ledger, error) {
	if ix := ca.seen.Load(); ix != nil {
		return ca.ledgerOf(ix)
	}
	return ca.ledger()
}

func (ca *CA) ledgerOf(ix *index) (*ledger, error) {
	revoked, err := ca.revoked()
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	return &ledger{ix.files, revoked}, nil
}

// all yields every certificate, in no order.
func (l *ledger) all(yield func(Issued) bool) {
	for _, c := range l.files {
		c.Revoked = l.revoked[c.Serial]
		if !yield(c) {
			return
		}
	}
}

// newestFirst is the order of lists.
func newestFirst(a, b Issued) int {
	return cmp.Or(b.NotBefore.Compare(a.NotBefore), strings.Compare(a.Serial, b.Serial))
}

// List returns what was issued and is not long over, newest first.
func (ca *CA) List() ([]Issued, error) {
	l, err := ca.ledger()
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(l.all, newestFirst), nil
}

// inForce returns the certificates of an identity that peers accept.
func (l *ledger) inForce(id ID, now time.Time) (out []Issued) {
	for c := range l.all {
		if c.ID == id && c.InForce(now) {
			out = append(out, c)
		}
	}
	return out
}

// NameTakenError is the refusal of a name that is in force. It is a fs.ErrExist.
type NameTakenError struct{ By ID }

// Error implements error.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("%s %q has a certificate that is in force", e.By.Role, e.By.Name)
}

// Is implements the test of errors.Is.
func (e *NameTakenError) Is(target error) bool { return target == fs.ErrExist }

// nameFree returns a *NameTakenError when a certificate of the name is in force under
// another role: whoever reads a name takes the two for one.
func (l *ledger) nameFree(id ID, now time.Time) error {
	for c := range l.all {
		if other := c.ID; other.Cluster == id.Cluster && other.Name == id.Name && other.Role != id.Role && c.InForce(now) {
			return &NameTakenError{other}
		}
	}
	return nil
}

// lineageOf returns the lineage of an identity that has a certificate which was not
// revoked. Without one it begins anew: known is false.
func (l *ledger) lineageOf(id ID, now time.Time) (lineage string, known bool) {
	var newest Issued
	for c := range l.all {
		if c.ID == id && !c.Revoked && !c.over(now) && (!known || newestFirst(c, newest) < 0) {
			newest, known = c, true
		}
	}
	if !known {
		return "", false
	}
	return Lineage(newest.cert), true
}

// Bounds of prune.
const (
	keepExpired = 90 * 24 * time.Hour
	pruneAtOnce = 1000 // files in one go: the folder's lock is held
)

// over tells whether a certificate has been expired for as long as it was good, or
// for keepExpired: nobody asks for it any more.
func (i Issued) over(now time.Time) bool {
	return now.After(i.NotAfter.Add(min(i.NotAfter.Sub(i.NotBefore), keepExpired)))
}

// prune removes the copies of certificates that are over. Those that are on the list
// of revoked ones stay until they leave it, which takes their copies.
func (ca *CA) prune(l *ledger, now time.Time) error {
	most := pruneAtOnce
	for name, c := range l.files {
		if !c.over(now) || l.revoked[c.Serial] {
			continue
		}
		if err := os.Remove(filepath.Join(ca.file("issued"), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the copy of an expired certificate: %w", err)
		}
		if most--; most == 0 {
			break
		}
	}
	return nil
}
