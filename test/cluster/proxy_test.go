package cluster_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/droverhq/drover/test/cluster"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// says writes a word and wants it back, or nothing for a while.
func says(t *testing.T, c net.Conn, back bool) {
	t.Helper()
	if _, err := c.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	hears(t, c, back)
}

func hears(t *testing.T, c net.Conn, back bool) {
	t.Helper()
	patience := 100 * time.Millisecond
	if back {
		patience = cluster.Patience
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	n, err := io.ReadFull(c, got)
	switch {
	case back && (err != nil || string(got) != "word"):
		t.Errorf("got %q, %v", got[:n], err)
	case !back && !errors.Is(err, os.ErrDeadlineExceeded):
		t.Errorf("got %q, %v over a network that loses everything", got[:n], err)
	}
}

func TestTheProxyLosesAndHeals(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string][2]bool{"forth": {true, false}, "back": {false, true}, "both": {true, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := echo(t)
			p := cluster.NewProxy(t, func() string { return address })
			c := dial(t, p.Address())
			says(t, c, true)
			p.Lose(lost[0], lost[1])
			says(t, c, false)
			p.Lose(false, false)
			hears(t, c, true) // what was lost is sent again, once
			says(t, c, true)
			p.Lose(lost[0], lost[1])
			c.Close()
			again := dial(t, p.Address())
			says(t, again, false)
			p.Lose(false, false)
			hears(t, again, true)
			p.Cut()
			if err := again.SetReadDeadline(time.Now().Add(cluster.Patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := again.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a connection that was cut: %v", err)
			}
			says(t, dial(t, p.Address()), true)
		})
	}
}
