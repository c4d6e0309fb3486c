package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/ownership"
)

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// writeFile replaces a file whole and durably.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := durable.Stage(path, data, mode)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := commit(f); err != nil {
		return err
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// commit puts a staged file into its place.
func commit(f *durable.Staged) error {
	failpoint.At(failpoint.CertsFileBefore)
	if err := f.Commit(); err != nil {
		return err
	}
	failpoint.At(failpoint.CertsFileAfter)
	return nil
}

// lockFile is what is locked.
const lockFile = ".lock"

// lockFolder takes the one lock of a folder, against other goroutines and other
// processes; the kernel gives it back when its holder dies (flock(2)).
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// parseCerts reads every certificate of a PEM text. None at all is an error,
// and so is anything that is not a certificate: a bundle that was cut off or
// mixed up must not pass for a shorter one.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := bytes.TrimSpace(data)
	for len(rest) > 0 {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("it holds text that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s, not only certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse a certificate: %w", err)
		}
		out = append(out, c)
		rest = bytes.TrimSpace(after)
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return out, nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := ownership.ReadTrusted(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	out, err := parseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

// parseBundle reads certificates of CAs to trust.
func parseBundle(data []byte) ([]*x509.Certificate, error) {
	all, err := parseCerts(data)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if !c.IsCA {
			return nil, fmt.Errorf("%q in it is not a CA certificate", c.Subject.CommonName)
		}
	}
	return all, nil
}

func encodeCerts(all []*x509.Certificate) []byte {
	var out []byte
	for _, c := range all {
		out = append(out, encodeCert(c.Raw)...)
	}
	return out
}
