package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/ownership"
)

// current names the folder of the present pair; tls.crt and tls.key lead
// through it.
const current = "current"

// WritePair stores key, certificate and CA bundle in dir. tls.crt and tls.key
// are links through one link, current, to a folder of their own, so that a
// single rename puts the new pair in the place of the old: there is no moment,
// and no crash, that leaves a key beside a certificate of another. A pair that
// would not work is refused and changes nothing.
func WritePair(dir string, key *ecdsa.PrivateKey, cert, bundle []byte) error {
	if err := checkPair(key, cert, bundle); err != nil {
		return fmt.Errorf("store the certificate in %s: %w", dir, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the certificate folder: %w", err)
	}
	if err := ownership.CheckFolder(dir); err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	unlock, err := lockFolder(dir)
	if err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	defer unlock()
	// What to trust comes first: a bundle only grows while certificates move.
	if err := writeBundle(filepath.Join(dir, "ca.crt"), bundle); err != nil {
		return err
	}
	if err := settle(dir); err != nil {
		return fmt.Errorf("store the certificate in %s: %w", dir, err)
	}
	folder, err := pairFolder(dir, keyPEM, cert)
	if err != nil {
		return err
	}
	if err := relink(dir, folder, current); err != nil {
		return fmt.Errorf("store the certificate in %s: %w", dir, err)
	}
	return sweepPairs(dir, folder)
}

// checkPair refuses what peers would refuse anyway.
func checkPair(key *ecdsa.PrivateKey, cert, bundle []byte) error {
	chain, err := parseCerts(cert)
	if err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return errors.New("the certificate is of another key")
	}
	if _, err := Identify(chain[0]); err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	cas, err := parseBundle(bundle)
	if err != nil {
		return fmt.Errorf("the CA certificates: %w", err)
	}
	return signedBy(chain, cas)
}

// signedBy tells whether a chain leads to one of the CAs, directly or through a
// link in it. Times do not matter here: peers judge them.
func signedBy(chain, cas []*x509.Certificate) error {
	for _, ca := range cas {
		if chain[0].CheckSignatureFrom(ca) == nil {
			return nil
		}
		for _, link := range chain[1:] {
			if chain[0].CheckSignatureFrom(link) == nil && link.CheckSignatureFrom(ca) == nil {
				return nil
			}
		}
	}
	return errors.New("none of the CA certificates beside it has signed it")
}

func poolOf(cs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range cs {
		pool.AddCert(c)
	}
	return pool
}

func writeBundle(path string, bundle []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, bundle) {
		return nil
	}
	return writeFile(path, bundle, 0o644)
}

// settle makes tls.crt and tls.key links through current. A pair of plain files
// moves into a folder first, so that it stays whole at every step.
func settle(dir string) error {
	names := []string{"tls.crt", "tls.key"}
	var plain [][]byte
	for _, name := range names {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("move the old pair: %w", err)
		}
		plain = append(plain, data)
	}
	if len(plain) == len(names) {
		folder, err := pairFolder(dir, plain[1], plain[0])
		if err != nil {
			return err
		}
		if err := relink(dir, folder, current); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := relink(dir, current+"/"+name, name); err != nil {
			return err
		}
	}
	return nil
}

// pairFolder puts a pair into a new folder of dir and returns the folder's name.
func pairFolder(dir string, key, cert []byte) (string, error) {
	path, err := os.MkdirTemp(dir, "pair-") // 0700
	if err != nil {
		return "", fmt.Errorf("store the certificate: %w", err)
	}
	if err := writeFile(filepath.Join(path, "tls.key"), key, 0o600); err != nil {
		return "", err
	}
	if err := writeFile(filepath.Join(path, "tls.crt"), cert, 0o644); err != nil {
		return "", err
	}
	return filepath.Base(path), nil
}

// relink makes or replaces one link by a rename.
func relink(dir, target, name string) error {
	path := filepath.Join(dir, name)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	fresh := filepath.Join(dir, ".link-"+name)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear a left link: %w", err)
	}
	if err := os.Symlink(target, fresh); err != nil {
		return fmt.Errorf("make a link: %w", err)
	}
	failpoint.At(failpoint.CertsLinkBefore)
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("put a link in place: %w", err)
	}
	failpoint.At(failpoint.CertsLinkAfter)
	return durable.SyncFolder(dir)
}

// sweepPairs removes the folders of earlier pairs: a key lives no longer than
// its certificate is served.
func sweepPairs(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove old pairs: %w", err)
	}
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), "pair-")
		if !e.IsDir() || !ours || strings.Trim(number, "0123456789") != "" || e.Name() == keep {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove an old pair: %w", err)
		}
	}
	return nil
}

// Missing tells whether dir holds no pair at all, which is a matter of joining
// rather than of a damaged file.
func Missing(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "tls.crt"))
	return errors.Is(err, fs.ErrNotExist)
}
