package output

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
)

// hasher sums a stream from its beginning. It may run ahead of the end of the
// attempt, so that a long stream is not read whole when it ends.
type hasher struct {
	mu   sync.Mutex // held while it reads
	hash hash.Hash  // made with the first byte
	at   uint64     // bytes summed
}

// sumOfNothing is the SHA-256 of no bytes: most streams are empty.
const sumOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// sumBytes is read at once to be summed: it stays in the processor's cache.
const sumBytes = 128 << 10

// errGap is met where bytes were given back.
var errGap = errors.New("the bytes were given back")

// digest sums a stream up to size and returns the sum.
func (s *Store) digest(ctx context.Context, st *stream, size uint64) (string, error) {
	if size == 0 {
		return sumOfNothing, nil
	}
	h := st.hash
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := s.sumTo(ctx, st, size); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.hash.Sum(nil)), nil
}

// hashAhead sums what a stream has moved so far; the mover calls it once per
// chunk, when the bytes are still in the page cache.
func (s *Store) hashAhead(st *stream) {
	h := st.hash
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := s.sumTo(context.Background(), st, st.size); err != nil {
		s.config.Log.Error("output not summed", "job", st.owner.key.Job, "error", err)
	}
}

// sumTo reads from where the sum stands; h.mu is held.
func (s *Store) sumTo(ctx context.Context, st *stream, size uint64) error {
	h := st.hash
	if h.hash == nil {
		h.hash = sha256.New()
	}
	buf := make([]byte, min(size-h.at, sumBytes))
	for h.at < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, gap, ok := s.lookup(st, h.at)
		if !ok || gap != nil {
			return fmt.Errorf("sum output at %d: %w", h.at, errGap)
		}
		skip := h.at - e.off
		n := min(e.length-skip, uint64(len(buf)), size-h.at)
		_, err := e.seg.data.ReadAt(buf[:n], int64(e.segOff+skip))
		e.seg.release()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("sum output at %d, cut off in %s: %w", h.at, e.seg.path, errGap)
		}
		if err != nil {
			return fmt.Errorf("sum output: %w", err)
		}
		h.hash.Write(buf[:n])
		h.at += n
	}
	return nil
}
