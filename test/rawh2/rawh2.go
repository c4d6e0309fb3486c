// Package rawh2 speaks HTTP/2 for tests as no well-behaved client does: frame by frame,
// with half of a message, too many streams or endless headers.
package rawh2

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frameBytes is the largest frame that every server takes.
const frameBytes = 16 << 10

// Conn is a connection. One goroutine writes.
type Conn struct {
	tls    *tls.Conn
	framer *http2.Framer
	block  bytes.Buffer
	encode *hpack.Encoder
	next   uint32

	mu     sync.Mutex // guards the fields below, and writes
	seen   Seen
	status map[uint32]string // by stream
	done   chan struct{}     // closed when the server has hung up
}

// Seen is what the server has answered.
type Seen struct {
	Resets, Statuses, Pings, GoAways int
	MaxStreams                       uint32
}

// Dial connects and says what every client says first.
func Dial(address string, config *tls.Config) (*Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	raw, err := tls.DialWithDialer(&d, "tcp", address, config)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	c := &Conn{tls: raw, framer: http2.NewFramer(raw, raw), next: 1, status: map[uint32]string{}, done: make(chan struct{})}
	c.encode = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := raw.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, fmt.Errorf("greet %s: %w", address, err)
	}
	if err := c.framer.WriteSettings(); err != nil {
		return nil, fmt.Errorf("greet %s: %w", address, err)
	}
	go c.read()
	return c, nil
}

// Close hangs up, and waits for the reader.
func (c *Conn) Close() {
	_ = c.tls.NetConn().Close()
	<-c.done
}

// Done is closed when the server has hung up.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Seen returns what the server has answered.
func (c *Conn) Seen() Seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// Status returns the grpc-status of a stream with its message, or "".
func (c *Conn) Status(stream uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status[stream]
}

func (c *Conn) read() {
	defer close(c.done)
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		c.take(f)
	}
}

func (c *Conn) take(f http2.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return
		}
		if n, ok := f.Value(http2.SettingMaxConcurrentStreams); ok {
			c.seen.MaxStreams = n
		}
		_ = c.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if c.seen.Pings++; !f.IsAck() {
			_ = c.framer.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		c.seen.Resets++
	case *http2.GoAwayFrame:
		c.seen.GoAways++
	case *http2.MetaHeadersFrame:
		for _, h := range f.Fields {
			switch h.Name {
			case "grpc-status":
				c.seen.Statuses++
				c.status[f.StreamID] = h.Value
			case "grpc-message":
				c.status[f.StreamID] += " " + h.Value
			}
		}
	}
}

// Write writes frames; write is given the framer.
func (c *Conn) Write(write func(*http2.Framer) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.tls.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	return write(c.framer)
}

// Open begins a call of a method and returns the stream. Further fields are names and
// values in turn.
func (c *Conn) Open(method string, fields ...string) (uint32, error) {
	stream := c.next
	c.next += 2
	c.block.Reset()
	all := append([]string{
		":method", "POST", ":scheme", "https", ":path", method, ":authority", "test", "content-type", "application/grpc", "te", "trailers",
	}, fields...)
	for i := 0; i+1 < len(all); i += 2 {
		if err := c.encode.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]}); err != nil {
			return 0, err
		}
	}
	rest := c.block.Bytes()
	return stream, c.Write(func(f *http2.Framer) error {
		part := rest[:min(len(rest), frameBytes)]
		rest = rest[len(part):]
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndHeaders: len(rest) == 0})
		for err == nil && len(rest) > 0 {
			part = rest[:min(len(rest), frameBytes)]
			rest = rest[len(part):]
			err = f.WriteContinuation(stream, len(rest) == 0, part)
		}
		return err
	})
}

// Ping sends a ping.
func (c *Conn) Ping() error {
	return c.Write(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{1}) })
}

// Settings sends settings.
func (c *Conn) Settings() error {
	return c.Write(func(f *http2.Framer) error {
		return f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: frameBytes})
	})
}

// Reset begins a call and takes it back.
func (c *Conn) Reset(method string) error {
	stream, err := c.Open(method)
	if err != nil {
		return err
	}
	return c.Write(func(f *http2.Framer) error { return f.WriteRSTStream(stream, http2.ErrCodeCancel) })
}

// Half sends the first bytes of a message that is said to be as large as a message may
// be.
func (c *Conn) Half(stream uint32, size, sent int) error {
	data := make([]byte, 5+sent)
	binary.BigEndian.PutUint32(data[1:], uint32(size)) //nolint:gosec // a few MiB
	return c.Write(func(f *http2.Framer) error {
		for len(data) > 0 {
			part := data[:min(len(data), frameBytes)]
			data = data[len(part):]
			if err := f.WriteData(stream, false, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// Long is a field of so many bytes.
func Long(size int) string { return strings.Repeat("x", size) }
