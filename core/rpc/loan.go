package rpc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// loans lends memory for output that is on its way, and for the frames that
// connections read. It may be used concurrently.
type loans struct {
	pools [largestLoan - smallestLoan + 1]sync.Pool // of *[]byte, each of twice the size of the one before
}

// Sizes of what is lent, as powers of two: 4 to 512 KiB. A frame of HTTP/2 has 16 KiB at
// the most; pieces of output grow with what their reader takes.
const (
	smallestLoan = 12
	largestLoan  = 19
)

var _ mem.BufferPool = (*loans)(nil)

// Get implements mem.BufferPool. The memory is not cleared, as that of gRPC's own
// pools is: who asks for it writes all of it.
func (l *loans) Get(n int) *[]byte {
	power := max(smallestLoan, bits.Len(uint(max(n, 1)-1)))
	if power > largestLoan {
		b := make([]byte, n)
		return &b
	}
	b, ok := l.pools[power-smallestLoan].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 1<<power)
		b = &fresh
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (l *loans) Put(b *[]byte) {
	power := bits.Len(uint(cap(*b))) - 1
	if power >= smallestLoan && power <= largestLoan && cap(*b) == 1<<power {
		l.pools[power-smallestLoan].Put(b)
	}
}

// loan is the memory of one piece.
type loan struct {
	from   *loans
	memory *[]byte
}

// take is what a reader asks for memory.
func (l *loan) take(n int) []byte {
	if mem.IsBelowBufferPoolingThreshold(n) {
		b := make([]byte, n)
		l.memory = &b
		return b
	}
	l.memory = l.from.Get(n)
	return *l.memory
}

// buffer is what was taken last, with one owner; nil when nothing was.
func (l *loan) buffer() mem.Buffer {
	b := l.memory
	if b == nil {
		return nil
	}
	l.memory = nil
	// A buffer looks at the capacity to decide whether it is given back.
	return mem.NewBuffer(b, l.from)
}
