package certs

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/droverhq/drover/plugins/ownership"
)

// joinKey is the key of a join that has no answer yet, in the folder of the pair.
const joinKey = "join.key"

// Joining is a key that is to get a certificate by a token. It lies in the folder of the
// pair until then: a join whose answer was lost is asked for again with the same key,
// and gets the same certificate.
type Joining struct {
	CSR []byte
	key *ecdsa.PrivateKey
	dir string
}

// StartJoin takes the key that waits in dir for its certificate, or makes one.
func StartJoin(dir string) (*Joining, error) {
	j := &Joining{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the certificate folder: %w", err)
	}
	if err := ownership.CheckFolder(dir); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	unlock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	defer unlock()
	switch j.key, err = readKey(j.file()); {
	case err == nil:
		j.CSR, err = requestFor(j.key)
		return j, err
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("join: %w", err)
	}
	if j.key, j.CSR, err = NewRequest(); err != nil {
		return nil, err
	}
	text, err := encodeKey(j.key)
	if err != nil {
		return nil, err
	}
	return j, writeFile(j.file(), text, 0o600)
}

func (j *Joining) file() string { return filepath.Join(j.dir, joinKey) }

// Finish stores the certificate that came.
func (j *Joining) Finish(cert, bundle []byte) error {
	if err := WritePair(j.dir, j.key, cert, bundle); err != nil {
		return err
	}
	return j.forget()
}

// Refused forgets the key, and the folder if there is nothing else in it: the answer
// came, and it was no.
func (j *Joining) Refused() error {
	if err := j.forget(); err != nil {
		return err
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != lockFile {
		return nil //nolint:nilerr // it stays
	}
	return errors.Join(os.Remove(filepath.Join(j.dir, lockFile)), os.Remove(j.dir))
}

func (j *Joining) forget() error {
	if err := os.Remove(j.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the key of the join: %w", err)
	}
	return nil
}
