// Package backup copies a store into one file and back, or into another store.
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
	batchPairs = 10_000
)

// Write copies all pairs but those whose keys leaveOut reports, as they are at this
// moment, and returns how many it has copied. A nil leaveOut leaves out nothing.
func Write(ctx context.Context, st store.Store, w io.Writer, leaveOut func(key []byte) bool) (pairs uint64, err error) {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	if _, err := out.WriteString(header); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	for p, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return pairs, fmt.Errorf("read the store: %w", err)
		}
		if leaveOut != nil && leaveOut(p.Key) {
			continue
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
	if err := empty(ctx, op, st); err != nil {
		return 0, err
	}
	if _, err := Verify(r); err != nil {
		return 0, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the backup again: %w", err)
	}
	to := filler{store: st}
	pairs, err = read(r, func(p store.Pair) error { return to.put(ctx, p) })
	if err == nil {
		err = to.end(ctx)
	}
	if err != nil {
		return pairs, fmt.Errorf("%s: %w", op, err)
	}
	return pairs, nil
}

// Copy puts all pairs of a store, as they are at this moment, into an empty one
// and returns how many they were. A store that is not empty is Precondition,
// reason STORE_NOT_EMPTY.
func Copy(ctx context.Context, from, to store.Store) (pairs uint64, err error) {
	const op = "copy the store"
	if err := empty(ctx, op, to); err != nil {
		return 0, err
	}
	fill := filler{store: to}
	for p, err := range from.Scan(ctx, store.Range{}) {
		if err != nil {
			return pairs, fmt.Errorf("%s: %w", op, err)
		}
		if err := fill.put(ctx, p); err != nil {
			return pairs, fmt.Errorf("%s: %w", op, err)
		}
		pairs++
	}
	if err := fill.end(ctx); err != nil {
		return pairs, fmt.Errorf("%s: %w", op, err)
	}
	return pairs, nil
}

func empty(ctx context.Context, op string, st store.Store) error {
	for _, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return fmt.Errorf("read the store: %w", err)
		}
		return errs.E(op, errs.Precondition, "STORE_NOT_EMPTY", errors.New("the store holds records already")).
			WithHint("give an empty one, or move the old records away first")
	}
	return nil
}

// filler puts pairs in batches. The term comes last: workers refuse what began
// to run on a store that was filled by half (P3).
type filler struct {
	store store.Store
	batch store.Batch
	bytes int
	term  []byte
}

func (f *filler) put(ctx context.Context, p store.Pair) error {
	if bytes.Equal(p.Key, store.TermKey()) {
		f.term = p.Value
		return nil
	}
	f.batch.Put(p.Key, p.Value)
	f.bytes += len(p.Key) + len(p.Value)
	if f.bytes < batchBytes && len(f.batch.Ops) < batchPairs {
		return nil
	}
	return f.flush(ctx)
}

func (f *filler) flush(ctx context.Context) error {
	err := f.store.Apply(ctx, &f.batch)
	f.batch, f.bytes = store.Batch{}, 0
	return err
}

func (f *filler) end(ctx context.Context) error {
	if err := f.flush(ctx); err != nil || f.term == nil {
		return err
	}
	f.batch.Put(store.TermKey(), f.term)
	return f.flush(ctx)
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
