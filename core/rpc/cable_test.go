package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/droverhq/drover/certs"
)

// counted counts what it is asked for.
type counted struct {
	*net.TCPConn
	reads, writes atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads.Add(1)
	return c.TCPConn.Read(p)
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

// end is one end of a connection over mutual TLS.
type end struct {
	net.Conn
	raw *counted
}

func cables(t *testing.T) (client, server end) {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "cable")
	if err != nil {
		t.Fatal(err)
	}
	source := func(name string, role certs.Role) *certs.Source {
		dir := filepath.Join(t.TempDir(), name)
		if err := ca.IssuePair(dir, certs.IssueRequest{Name: name, Role: role, Hosts: []string{"127.0.0.1"}}); err != nil {
			t.Fatal(err)
		}
		s, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shaken := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err == nil {
			server.raw = &counted{TCPConn: raw.(*net.TCPConn)}
			server.Conn, _, err = Credentials(source("scheduler", certs.RoleScheduler).ServerConfig()).ServerHandshake(server.raw)
		}
		shaken <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client.raw = &counted{TCPConn: raw.(*net.TCPConn)}
	client.Conn, _, err = Credentials(source("admin", certs.RoleAdmin).ClientConfig(certs.RoleScheduler, "")).Clone().
		ClientHandshake(context.Background(), "127.0.0.1", client.raw)
	if err := errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.raw.Close()
		_ = server.raw.Close()
	})
	return client, server
}

// TestACableCarriesWritesOfAnySizeInOrder, both ways at once.
func TestACableCarriesWritesOfAnySizeInOrder(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	send := func(to io.Writer, data []byte, seed uint64) error {
		random := rand.New(rand.NewPCG(seed, 1))
		for sizes := []int{1, 5, 100, recordBytes, recordBytes + 1, 100_000, writeBuffer, 500_000}; len(data) > 0; {
			n := min(len(data), sizes[random.IntN(len(sizes))])
			if _, err := to.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	}
	content := make([]byte, 6<<20)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	results := make(chan error, 4)
	for i, way := range [][2]end{{client, server}, {server, client}} {
		go func() { results <- send(way[0], content, uint64(i)) }()
		go func() {
			got := make([]byte, len(content))
			_, err := io.ReadFull(way[1], got)
			if err == nil && !bytes.Equal(got, content) {
				err = errors.New("other bytes came")
			}
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestMuchPassesWithFewCalls: a record has 16 KiB, a system call may carry many.
func TestMuchPassesWithFewCalls(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	writes, reads := server.raw.writes.Load(), client.raw.reads.Load()
	const rounds = 32 // a TLS connection begins with small records
	sent := make(chan error, 1)
	go func() {
		var err error
		for range rounds {
			_, errWrite := server.Write(make([]byte, writeBuffer))
			err = errors.Join(err, errWrite)
		}
		sent <- errors.Join(err, server.Close())
	}()
	n, err := io.Copy(io.Discard, client)
	if err := errors.Join(err, <-sent); err != nil || n != rounds*writeBuffer {
		t.Fatalf("%d bytes, %v", n, err)
	}
	records := int64(rounds * writeBuffer / recordBytes)
	if got := server.raw.writes.Load() - writes; got > rounds {
		t.Errorf("%d calls wrote %d records", got, records)
	}
	if got := client.raw.reads.Load() - reads; got > records {
		t.Errorf("%d calls read %d records", got, records)
	}
}

// TestASmallWriteDoesNotWait for others, and a silent connection holds no memory.
func TestASmallWriteDoesNotWait(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	for range 3 {
		for _, n := range []int{10, 200_000} {
			sent := make(chan error, 1)
			go func() {
				_, err := server.Write(make([]byte, n))
				sent <- err
			}()
			if _, err := io.ReadFull(client, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
	}
	if c := client.Conn.(*secured).cable; c.ahead != nil {
		t.Error("the reader keeps a buffer")
	}
	if server.Conn.(*secured).cable.holds() {
		t.Error("the writer keeps a buffer")
	}
}

func (c *cable) holds() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held != nil
}

// TestAFullBufferThatNothingFollowsIsWritten, though more is awaited then: gRPC
// writes nothing when it has nothing.
func TestAFullBufferThatNothingFollowsIsWritten(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	for range 3 {
		for range 2 {
			if _, err := server.Write(make([]byte, writeBuffer)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(client, make([]byte, 2*writeBuffer)); err != nil {
			t.Fatal(err)
		}
	}
	for server.Conn.(*secured).cable.holds() {
		runtime.Gosched() // the other end is faster than the end of the write
	}
}

// TestWhatWaitsForMoreIsWrittenBeforeAnythingElse: a small write, or the end.
func TestWhatWaitsForMoreIsWrittenBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	big := bytes.Repeat([]byte("b"), writeBuffer)
	want := append(append(bytes.Clone(big), "small"...), big...)
	sent := make(chan error, 1)
	go func() {
		_, err := server.Write(big)
		_, err1 := server.Write([]byte("small"))
		_, err2 := server.Write(big)
		sent <- errors.Join(err, err1, err2, server.Close())
	}()
	got, err := io.ReadAll(client)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came, %v", len(got), len(want), err)
	}
	if _, err := server.Write(big); err == nil || server.Conn.(*secured).cable.holds() {
		t.Errorf("something waits in a connection that is closed, %v", err)
	}
}

// TestCloseEndsAWriteThatNobodyReads at once, without the farewell of TLS, which
// would wait for the same reader.
func TestCloseEndsAWriteThatNobodyReads(t *testing.T) {
	t.Parallel()
	client, server := cables(t)
	before := server.raw.writes.Load()
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := server.Write(make([]byte, writeBuffer)); err != nil {
				ended <- err
				return
			}
		}
	}()
	// The write that is under way when the buffers of both sides are full.
	for last := int64(-1); ; last = server.raw.writes.Load() {
		if full(t, server.raw) && server.Conn.(*secured).flushes.Load() && last == server.raw.writes.Load() && last > before {
			break
		}
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write ended with %v", err)
	}
	_ = client
}

// full tells whether nothing more can be written to a connection now.
func full(t *testing.T, c *counted) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var writable bool
	if err := raw.Control(func(fd uintptr) {
		set := &syscall.FdSet{}
		set.Bits[fd/64] |= 1 << (fd % 64)
		n, err := syscall.Select(int(fd)+1, nil, set, nil, &syscall.Timeval{Usec: 20_000})
		writable = err != nil || n > 0
	}); err != nil {
		t.Fatal(err)
	}
	return !writable
}
