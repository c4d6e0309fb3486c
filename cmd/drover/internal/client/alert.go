package client

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/droverhq/drover/certs"
)

// alertTimeout bounds the wait for an alert on a connection that is broken.
const alertTimeout = time.Second

// alerted tells why the server hung up. With TLS 1.3 a client's handshake is
// over before the server has judged its certificate; the refusal is an alert
// that waits to be read when the first write fails with "broken pipe".
//
// What a dead server sent before its end is still there to be read, too: a byte
// that is taken here is missing in the middle of somebody's frame (P8). So only
// a connection that nobody reads is asked, and then nobody reads it any more;
// otherwise its reader will meet the alert.
type alerted struct {
	net.Conn
	failed chan struct{} // closed when a Read has failed

	mu      sync.Mutex // guards the fields below
	read    bool       // somebody reads
	broken  error      // what every Read after this one returns
	failure error      // of the first Read that failed
}

func newAlerted(c net.Conn) *alerted { return &alerted{Conn: c, failed: make(chan struct{})} }

// Read implements net.Conn.
func (c *alerted) Read(p []byte) (int, error) {
	c.mu.Lock()
	c.read = true
	broken := c.broken
	c.mu.Unlock()
	if broken != nil {
		return 0, broken
	}
	n, err := c.Conn.Read(p)
	if err != nil {
		c.fail(err)
	}
	return n, err
}

func (c *alerted) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		c.failure = err
		close(c.failed)
	}
}

// Write implements net.Conn.
func (c *alerted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	if why := c.alert(err); why != nil && certs.Explain(why) != "" {
		return n, why
	}
	return n, err
}

// alert is what a read of the connection fails with after a write has; nil when
// that takes too long.
func (c *alerted) alert(cause error) error {
	c.mu.Lock()
	others := c.read
	if !others {
		c.broken = cause
	}
	c.mu.Unlock()
	if !others {
		if err := c.SetReadDeadline(time.Now().Add(alertTimeout)); err != nil {
			return err
		}
		_, err := c.Conn.Read(make([]byte, 1))
		return err
	}
	late := time.NewTimer(alertTimeout)
	defer late.Stop()
	select {
	case <-c.failed:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.failure
	case <-late.C:
		return nil
	}
}
