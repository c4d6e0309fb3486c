package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/droverhq/drover/plugins/ownership"
)

// Validity of what the CA signs.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	LeafValidity = 90 * 24 * time.Hour
	// backdate covers clocks that are a little behind.
	backdate = 5 * time.Minute
)

// CA signs certificates. Its folder holds ca.crt (every CA to trust), ca.key
// (0600), issued/ (one PEM per serial), tokens/, revoked and, after a rotation,
// chain.crt. It may be used concurrently, also by several processes: whatever
// decides and writes holds the folder's lock, and the key is read anew for each
// signature, so that a running scheduler follows a rotation.
type CA struct {
	dir     string
	cluster string
	seen    atomic.Pointer[index] // issued/ as it was last
}

// authority is the signing half of a CA as it stands on disk.
type authority struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	trust []*x509.Certificate // ca.crt
	chain []*x509.Certificate // chain.crt: links to the CA before
}

// Init makes a CA for a cluster in dir. It never overwrites one: that is
// fs.ErrExist.
func Init(dir, cluster string) (*CA, error) {
	if err := CheckName(cluster); err != nil {
		return nil, fmt.Errorf("make the CA: cluster: %w", err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "issued"), filepath.Join(dir, "tokens")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the CA: %w", err)
		}
	}
	if err := ownership.CheckFolder(dir); err != nil {
		return nil, fmt.Errorf("make the CA: %w", err)
	}
	unlock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("make the CA: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); err == nil {
		return nil, fmt.Errorf("make the CA: %s holds one already; choose another folder: %w", dir, fs.ErrExist)
	}
	cert, key, err := newAuthority(cluster, time.Now())
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, "ca.crt"), encodeCert(cert.Raw), 0o644); err != nil {
		return nil, err
	}
	// The key comes last: a folder with a key is a whole CA.
	if err := writeKey(dir, key); err != nil {
		return nil, err
	}
	return OpenCA(dir)
}

// newAuthority makes a key and the certificate that it signs for itself.
func newAuthority(cluster string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"drover"}, CommonName: cluster},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(CAValidity),
		// One CA below this one: the link that a rotation makes.
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(template, template, key.Public(), key)
	return cert, key, err
}

func sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return cert, nil
}

func writeKey(dir string, key *ecdsa.PrivateKey) error {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "ca.key"), keyPEM, 0o600)
}

// OpenCA opens the CA in dir. A missing one is fs.ErrNotExist.
func OpenCA(dir string) (*CA, error) {
	ca := &CA{dir: dir}
	for _, d := range []string{dir, ca.file("issued"), ca.file("tokens")} {
		if err := ownership.CheckFolder(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open the CA: %w", err)
		}
	}
	a, err := ca.load()
	if err != nil {
		return nil, err
	}
	ca.cluster = a.cert.Subject.CommonName
	return ca, nil
}

// load reads key and certificates.
func (ca *CA) load() (*authority, error) {
	key, err := readKey(ca.file("ca.key"))
	if err != nil {
		return nil, fmt.Errorf("open the CA: %w", err)
	}
	trust, err := readCerts(ca.file("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("open the CA: %w", err)
	}
	chain, err := readCerts(ca.file("chain.crt"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the CA: %w", err)
	}
	chain = slices.DeleteFunc(chain, func(c *x509.Certificate) bool { return !key.PublicKey.Equal(c.PublicKey) })
	for _, c := range trust {
		if c.IsCA && key.PublicKey.Equal(c.PublicKey) {
			return &authority{c, key, trust, chain}, nil
		}
	}
	return nil, fmt.Errorf("open the CA: no certificate in %s belongs to its key; restore both from the same backup", ca.file("ca.crt"))
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := ownership.ReadSecret(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // says what is wrong with which file
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the key in %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key in %s is a %T, not ECDSA", path, parsed)
	}
	return key, nil
}

func (ca *CA) file(name string) string { return filepath.Join(ca.dir, name) }

// Cluster is the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// BundleFile names the file with every CA certificate to trust.
func (ca *CA) BundleFile() string { return ca.file("ca.crt") }

// Bundle returns every CA certificate to trust, PEM: during a rotation the old
// one stays in ca.crt beside the new one.
func (ca *CA) Bundle() ([]byte, error) {
	data, err := os.ReadFile(ca.BundleFile())
	if err != nil {
		return nil, fmt.Errorf("read the CA certificates: %w", err)
	}
	return data, nil
}

// pinOf is the sha256 of a CA's public key, which tokens carry.
func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// newSerial returns a positive number of 127 random bits (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
