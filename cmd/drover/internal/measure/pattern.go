package measure

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
)

// patternBlock is how long random bytes go on before they come again: more than
// any window of a compressor, and little enough to be compared quickly.
const patternBlock = 8 << 20

// Pattern is bytes that cannot be compressed and that are known to whoever
// looks whether they have arrived.
type Pattern struct {
	Bytes  int64
	SHA256 string // in hexadecimal digits

	block []byte
}

// NewPattern makes so many bytes up.
func NewPattern(size int64) (*Pattern, error) {
	p := &Pattern{Bytes: size, block: make([]byte, min(size, patternBlock))}
	if _, err := rand.Read(p.block); err != nil {
		return nil, fmt.Errorf("make random bytes: %w", err)
	}
	sum := sha256.New()
	_ = p.pieces(func(b []byte) error { sum.Write(b); return nil })
	p.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return p, nil
}

func (p *Pattern) pieces(yield func([]byte) error) error {
	for left := p.Bytes; left > 0; {
		b := p.block[:min(left, int64(len(p.block)))]
		if err := yield(b); err != nil {
			return err
		}
		left -= int64(len(b))
	}
	return nil
}

// WriteFile makes a file of the bytes.
func (p *Pattern) WriteFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the file that is read: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return p.pieces(func(b []byte) error {
		_, err := f.Write(b)
		return err
	})
}

// arrival is an io.Writer that compares what it gets with the pattern.
type arrival struct {
	pattern *Pattern
	at      int64
	sum     hash.Hash // nil: bytes are compared and not summed
}

// Write implements io.Writer.
func (a *arrival) Write(b []byte) (int, error) {
	if a.sum != nil {
		a.sum.Write(b)
	}
	n := len(b)
	if a.at+int64(n) > a.pattern.Bytes {
		return 0, fmt.Errorf("%d bytes came, %d were written", a.at+int64(n), a.pattern.Bytes)
	}
	for len(b) > 0 {
		skip := int(a.at % int64(len(a.pattern.block)))
		same := min(len(b), len(a.pattern.block)-skip)
		if !bytes.Equal(b[:same], a.pattern.block[skip:skip+same]) {
			return 0, fmt.Errorf("the bytes from %d to %d are others than those that were written", a.at, a.at+int64(same))
		}
		a.at += int64(same)
		b = b[same:]
	}
	return n, nil
}

// complete tells whether all has come.
func (a *arrival) complete() error {
	if a.at != a.pattern.Bytes {
		return fmt.Errorf("%d of %d bytes came", a.at, a.pattern.Bytes)
	}
	if a.sum == nil {
		return nil
	}
	if got := hex.EncodeToString(a.sum.Sum(nil)); got != a.pattern.SHA256 {
		return fmt.Errorf("SHA-256 of what came is %s, of what was written %s", got, a.pattern.SHA256)
	}
	return nil
}
