// Package backup copies a store into one file and back.
//
// The file is a line that names the format, then pairs, each as length of key,
// length of value (varints), key, value; then an empty key, the number of pairs
// and the sha256 of all before it. A file that broke off, or was changed, is
// known before anything of it is used.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

const (
	header     = "drover backup 1\n"
	maxLength  = 1 << 30 // of a key or a value; more is damage
	batchBytes = 1 << 20
)

// Write copies all pairs, as they are at this moment, and returns how many they
// were.
func Write(ctx context.Context, st store.Store, w io.Writer) (pairs uint64, err error) {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	if _, err := out.WriteString(header); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	for p, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return pairs, fmt.Errorf("read the store: %w", err)
		}
		if err := writePair(out, p); err != nil {
			return pairs, fmt.Errorf("write the backup: %w", err)
		}
		pairs++
	}
	end := binary.BigEndian.AppendUint64([]byte{0}, pairs)
	if _, err := out.Write(end); err != nil {
		return pairs, fmt.Errorf("write the backup: %w", err)
	}
	if err := out.Flush(); err != nil {
		return pairs, fmt.Errorf("write the backup: %w", err)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return pairs, fmt.Errorf("write the backup: %w", err)
	}
	return pairs, nil
}

func writePair(out *bufio.Writer, p store.Pair) error {
	b := binary.AppendUvarint(out.AvailableBuffer(), uint64(len(p.Key)))
	b = binary.AppendUvarint(b, uint64(len(p.Value)))
	for _, part := range [][]byte{b, p.Key, p.Value} {
		if _, err := out.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads a backup to its end and returns how many pairs it holds. What is
// wrong with it is Invalid, reason BACKUP_DAMAGED.
func Verify(r io.Reader) (pairs uint64, err error) {
	return read(r, func(store.Pair) error { return nil })
}

// Load verifies a backup, then puts its pairs into an empty store. A store that
// is not empty is Precondition, reason STORE_NOT_EMPTY.
func Load(ctx context.Context, r io.ReadSeeker, st store.Store) (pairs uint64, err error) {
	const op = "restore the backup"
	for _, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return 0, fmt.Errorf("read the store: %w", err)
		}
		return 0, errs.E(op, errs.Precondition, "STORE_NOT_EMPTY", errors.New("the store holds records already")).
			WithHint("restore into another folder, or move the old one away first")
	}
	if _, err := Verify(r); err != nil {
		return 0, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the backup again: %w", err)
	}
	var b store.Batch
	size := 0
	flush := func() error {
		err := st.Apply(ctx, &b)
		b, size = store.Batch{}, 0
		return err
	}
	pairs, err = read(r, func(p store.Pair) error {
		b.Put(p.Key, p.Value)
		if size += len(p.Key) + len(p.Value); size < batchBytes {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return pairs, fmt.Errorf("restore the backup: %w", err)
	}
	return pairs, nil
}

// reader reads bytes and sums them.
type reader struct {
	*bufio.Reader
	sum hash.Hash
}

// take returns the next n bytes. Memory grows with what is there, not with what
// a damaged length says.
func (r *reader) take(n uint64) ([]byte, error) {
	if n > maxLength {
		return nil, fmt.Errorf("a length of %d bytes", n)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(io.MultiWriter(&b, r.sum), r.Reader, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ReadByte implements io.ByteReader for the varints.
func (r *reader) ReadByte() (byte, error) {
	c, err := r.Reader.ReadByte()
	if err == nil {
		r.sum.Write([]byte{c})
	}
	return c, err
}

func read(from io.Reader, use func(store.Pair) error) (pairs uint64, err error) {
	r := &reader{bufio.NewReaderSize(from, 64<<10), sha256.New()}
	first, err := r.take(uint64(len(header)))
	if err != nil || string(first) != header {
		return 0, damaged(0, errors.New("it does not begin as a backup of drover does"))
	}
	for {
		p, last, err := r.pair()
		if err != nil {
			return pairs, damaged(pairs, err)
		}
		if last {
			return pairs, r.end(pairs)
		}
		if err := use(p); err != nil {
			return pairs, err
		}
		pairs++
	}
}

func (r *reader) pair() (p store.Pair, last bool, err error) {
	n, err := binary.ReadUvarint(r)
	if err != nil || n == 0 {
		return p, err == nil, err
	}
	m, err := binary.ReadUvarint(r)
	if err != nil {
		return p, false, err
	}
	if p.Key, err = r.take(n); err != nil {
		return p, false, err
	}
	p.Value, err = r.take(m)
	return p, false, err
}

// end checks what follows the last pair.
func (r *reader) end(pairs uint64) error {
	count, err := r.take(8)
	if err != nil {
		return damaged(pairs, err)
	}
	want := r.sum.Sum(nil)
	got, err := r.take(sha256.Size)
	switch {
	case err != nil:
		return damaged(pairs, err)
	case binary.BigEndian.Uint64(count) != pairs || !bytes.Equal(got, want):
		return damaged(pairs, errors.New("its sum does not match"))
	}
	if _, err := r.Reader.ReadByte(); !errors.Is(err, io.EOF) {
		return damaged(pairs, errors.New("something follows its end"))
	}
	return nil
}

func damaged(pairs uint64, why error) error {
	if errors.Is(why, io.EOF) || errors.Is(why, io.ErrUnexpectedEOF) {
		why = errors.New("it breaks off")
	}
	return errs.E("read the backup", errs.Invalid, "BACKUP_DAMAGED", fmt.Errorf("after %d records: %w", pairs, why)).
		WithHint("take another copy")
}
