// Package redistest starts Redis servers for tests.
package redistest

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Missing is what a test fails with where there is no Redis.
const Missing = "there is no redis-server in PATH: apt-get install redis-server"

// patience is how long a server may take to come up, on any machine.
const patience = 60 * time.Second

// Server is one redis-server process. Its methods are for one goroutine.
type Server struct {
	Dir    string // holds its data
	Socket string

	args  []string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has been waited for
}

// Start starts a server that syncs each write, on a socket of its own. The
// arguments are added to its command line. It ends with the test.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal(Missing)
	}
	// The path of a socket has at most 107 bytes (unix(7)); that of a test may be longer.
	short, err := os.MkdirTemp("", "redis") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: t.TempDir(), Socket: filepath.Join(short, "s"), args: args}
	t.Cleanup(func() {
		s.Kill()
		if err := os.RemoveAll(short); err != nil {
			t.Error(err)
		}
	})
	s.Up(t)
	return s
}

// URL is where the server is, with parameters such as "prefix=a".
func (s *Server) URL(parameters ...string) string {
	u := "redis+unix://" + s.Socket
	if len(parameters) > 0 {
		u += "?" + strings.Join(parameters, "&")
	}
	return u
}

// Up starts the process on the server's folder and waits until it answers.
func (s *Server) Up(t testing.TB) {
	t.Helper()
	args := append([]string{
		"--port", "0", "--unixsocket", s.Socket, "--dir", s.Dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning",
	}, s.args...)
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the test is killed
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // tells of the signal
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !s.answers() {
		select {
		case <-s.ended:
			text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
			t.Fatalf("redis-server ended: %s", text)
		case <-ctx.Done():
			text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
			t.Fatalf("redis-server did not come up: %s", text)
		case <-time.After(5 * time.Millisecond): // it tells nobody when it is ready
		}
	}
}

// answers tells whether the server is there and has loaded its records. An
// answer that denies is one.
func (s *Server) answers() bool {
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && !strings.HasPrefix(line, "-LOADING")
}

// Change adds arguments and starts the process again.
func (s *Server) Change(t testing.TB, args ...string) {
	t.Helper()
	s.Kill()
	s.args = append(s.args, args...)
	s.Up(t)
}

// Port returns a TCP port of 127.0.0.1 that nobody listens on.
func Port(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Kill ends the process with SIGKILL; one that has ended is left alone.
func (s *Server) Kill() {
	if s.ended == nil {
		return
	}
	_ = s.cmd.Process.Kill() // fails when it has ended by itself
	<-s.ended
}

// Signal sends a signal, such as SIGSTOP.
func (s *Server) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}
