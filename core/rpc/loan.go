package rpc

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// loans lends memory for output that is on its way, and for the frames that
// connections read. It may be used concurrently.
type loans struct {
	short, frame, small, large sync.Pool // of *[]byte
}

// Sizes of what is lent. A frame of HTTP/2 has 16 KiB at the most. Nearly all
// pieces of a stream that is followed are small; of one that is read from the disk
// they are as large as they get.
const (
	shortLoan = 4 << 10
	frameLoan = 16 << 10
	smallLoan = 32 << 10
	largeLoan = 512 << 10
)

var _ mem.BufferPool = (*loans)(nil)

// Get implements mem.BufferPool. The memory is not cleared, as that of gRPC's own
// pools is: who asks for it writes all of it.
func (l *loans) Get(n int) *[]byte {
	pool, size := &l.short, shortLoan
	switch {
	case n > largeLoan:
		b := make([]byte, n)
		return &b
	case n > smallLoan:
		pool, size = &l.large, largeLoan
	case n > frameLoan:
		pool, size = &l.small, smallLoan
	case n > shortLoan:
		pool, size = &l.frame, frameLoan
	}
	b, ok := pool.Get().(*[]byte)
	if !ok {
		fresh := make([]byte, size)
		b = &fresh
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (l *loans) Put(b *[]byte) {
	switch cap(*b) {
	case shortLoan:
		l.short.Put(b)
	case frameLoan:
		l.frame.Put(b)
	case smallLoan:
		l.small.Put(b)
	case largeLoan:
		l.large.Put(b)
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
