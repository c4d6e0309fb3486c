package client

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// gone is a connection whose server is dead: writes fail, and what it sent
// before is still there to be read.
type gone struct {
	net.Conn
	left *strings.Reader
}

func (g gone) Read(p []byte) (int, error)      { return g.left.Read(p) }
func (g gone) Write([]byte) (int, error)       { return 0, syscall.EPIPE }
func (g gone) SetReadDeadline(time.Time) error { return nil }

// TestAFailedWriteTakesNoByteFromTheReader: when a scheduler was killed while it
// sent output, a byte was missing in what its client had still to read, and the
// first one of the next frame took its place (P8).
func TestAFailedWriteTakesNoByteFromTheReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const sent = "what was on its way"
		c := newAlerted(gone{left: strings.NewReader(sent)})
		first := make([]byte, 4)
		if _, err := io.ReadFull(c, first); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the write: %v", err)
		}
		rest, err := io.ReadAll(c)
		if got := string(first) + string(rest); got != sent || err != nil {
			t.Errorf("read %q, %v, was sent %q", got, err, sent)
		}
	})
}

// TestTheReaderMeetsTheAlert: a write that fails waits for what its reader hears.
func TestTheReaderMeetsTheAlert(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newAlerted(gone{left: strings.NewReader("1")})
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		begin, heard := time.Now(), make(chan error)
		go func() { heard <- c.alert(syscall.EPIPE) }()
		synctest.Wait()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		if err := <-heard; !errors.Is(err, io.EOF) || time.Since(begin) > 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestNobodyReadsAfterAnAlertWasLookedFor: the byte that was taken would be missing.
func TestNobodyReadsAfterAnAlertWasLookedFor(t *testing.T) {
	t.Parallel()
	c := newAlerted(gone{left: strings.NewReader("data")})
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(c); len(data) > 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("read %q, %v", data, err)
	}
}
