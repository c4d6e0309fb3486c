package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/output"
)

// What a reader of output has not taken stays in the file. gRPC would hold 64 KiB and
// two pieces for a reader that stands still, and as much again wherever a stream passes
// through: so no piece is handed to it before enough of those before have left, and how
// much may be on its way grows only with what the reader has taken (P16).
const (
	leastWindow = 8 << 10
	mostWindow  = 1 << 20 // enough for a reader far away, and for pieces of the largest size
	windowPart  = 4       // of what was taken, so much may be on its way
	windowsMost = 8 << 20 // of all readers of a server, beyond leastWindow of each
	pieceCost   = 512     // of a message beside its bytes, in bytes

	// stallAfter is when the stream to the worker is closed of a reader that takes
	// nothing. It is opened again at the same byte, which costs a call.
	stallAfter = 500 * time.Millisecond
	// idleMost is when a reader is ended that takes nothing though there is something.
	// A pager may be left alone for some time; its client goes on by itself.
	idleMost  = 10 * time.Minute
	goneEvery = 5 * time.Second // between two looks whether the job was removed
)

// reasonIdle is the reason of the error that ends a reader which takes nothing.
const reasonIdle = "READER_IDLE"

// windows is what all readers of a server have on their way beyond the least.
type windows struct{ used atomic.Int64 }

// take takes n bytes, or fewer, if there are any: a fourth of what is left, so that
// readers which stand still with much leave something to those that come later. It
// returns a power of two, or 0.
func (w *windows) take(n int) int {
	left := (windowsMost - w.used.Load()) / 4
	if n = min(n, int(left)); n < leastWindow {
		return 0
	}
	n = 1 << (bits.Len(uint(n)) - 1)
	w.used.Add(int64(n))
	return n
}

// flow is what is on its way to one reader. Its goroutine hands pieces to gRPC, which
// tells when they have left.
type flow struct {
	of     *windows
	idle   time.Duration // idleMost
	marker []byte        // not small, or gRPC would not tell
	landed chan struct{} // capacity 1

	mu     sync.Mutex // guards the fields below
	flying int        // handed to gRPC, and not on the wire
	taken  uint64
	extra  int // taken from windows
	sent   bool
}

func newFlow(of *windows) *flow {
	return &flow{of: of, idle: idleMost, marker: make([]byte, 0, 2<<10), landed: make(chan struct{}, 1)}
}

// close gives the window back. What is still on its way belongs to a stream that ends.
func (f *flow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of.used.Add(int64(-f.extra))
	f.extra = 0
}

// piece returns how large the next piece may be; 0: the reader must take something first.
func (f *flow) piece() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	window := max(leastWindow, f.extra)
	if want := int(min(f.taken/windowPart, mostWindow)); want >= 2*window {
		if got := f.of.take(want); got > f.extra {
			f.of.used.Add(int64(-f.extra))
			f.extra = got
			window = got
		} else {
			f.of.used.Add(int64(-got))
		}
	}
	if f.flying > window/2 {
		return 0
	}
	// With what is around it, a piece fits into memory of half a window.
	return window/2 - headBytes
}

// await waits until the reader may be sent a piece, and returns how large it may be; 0:
// it took nothing for so long.
func (f *flow) await(ctx context.Context, patience time.Duration) (int, error) {
	if n := f.piece(); n > 0 {
		return n, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-f.landed:
			if n := f.piece(); n > 0 {
				return n, nil
			}
		case <-timer.C:
			return 0, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// stand waits for a reader that stands still. It ends with an error when the job is
// removed, which gone tells, or when the reader takes too long.
func (f *flow) stand(ctx context.Context, gone func() error) (int, error) {
	for end := time.Now().Add(f.idle); time.Now().Before(end); {
		n, err := f.await(ctx, min(goneEvery, f.idle))
		if n > 0 || err != nil {
			return n, err
		}
		if err := gone(); err != nil {
			return 0, err
		}
	}
	return 0, errs.E("read output", errs.Unavailable, reasonIdle,
		fmt.Errorf("the reader has taken nothing for %s though there is output", f.idle)).
		WithHint("read on from the offset after the last byte that came")
}

// began tells whether anything was sent.
func (f *flow) began() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent
}

// load counts a message that is about to be sent, until gRPC has written it.
func (f *flow) load(m *frame) {
	l := &landing{of: f, bytes: m.data.Len() + pieceCost, marker: f.marker}
	f.mu.Lock()
	f.flying += l.bytes
	f.sent = true
	f.mu.Unlock()
	m.data = append(slices.Clip(m.data), mem.NewBuffer(&l.marker, l))
}

// landing is the end of a message: memory without bytes, which is given back when the
// message is on the wire, or its stream at its end.
type landing struct {
	of     *flow
	bytes  int
	marker []byte
}

// Get implements mem.BufferPool.
func (l *landing) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put implements mem.BufferPool.
func (l *landing) Put(*[]byte) {
	f := l.of
	f.mu.Lock()
	f.flying -= l.bytes
	f.taken += uint64(l.bytes)
	f.mu.Unlock()
	select {
	case f.landed <- struct{}{}:
	default:
	}
}

// errGone ends the readers of a removed job.
func errGone() error {
	return errs.E("read output", errs.NotFound, output.ReasonGone, errors.New("its job was removed"))
}
