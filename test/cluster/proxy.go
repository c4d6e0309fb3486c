package cluster

import (
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server and is the network that tests
// take apart. What it loses is held back and not answered, as by a network that
// drops packets: nobody gets a reset, and nobody learns that the other side has
// hung up. When it heals, what TCP would send again arrives.
type Proxy struct {
	listen net.Listener
	target func() string // host:port of the server now; "": not known yet

	mu     sync.Mutex // guards the fields below
	heal   *sync.Cond // told when they, or what a lane holds, change
	lost   [2]bool    // by Direction
	closed bool
	conns  map[*proxied]struct{}
	given  int // ends of connections that were given up while bytes were lost
	wait   sync.WaitGroup
}

// Direction is the way that bytes go through a proxy.
type Direction int

// The directions: from who dials to who listens, and back.
const (
	Forth Direction = iota
	Back
)

// proxied is one connection: the ends of client and server.
type proxied struct{ ends [2]net.Conn }

func (c *proxied) close() {
	for _, end := range c.ends {
		if end != nil {
			_ = end.Close()
		}
	}
}

// NewProxy starts a proxy to whatever target says when a connection is made. It
// ends with the test.
func NewProxy(t testing.TB, target func() string) *Proxy {
	t.Helper()
	p := newProxy(t, target)
	t.Cleanup(p.close)
	return p
}

func newProxy(t testing.TB, target func() string) *Proxy {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listen: listen, target: target, conns: map[*proxied]struct{}{}}
	p.heal = sync.NewCond(&p.mu)
	p.wait.Go(p.accept)
	return p
}

// Address is where clients connect.
func (p *Proxy) Address() string { return p.listen.Addr().String() }

// Lose begins to lose what goes forth, back, or both; Lose(false, false) heals.
func (p *Proxy) Lose(forth, back bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = [2]bool{forth, back}
	p.heal.Broadcast()
}

// Cut resets every connection that there is. New ones can be made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// GivenUp counts ends of connections that their owners closed while something was
// being lost: they have noticed by themselves.
func (p *Proxy) GivenUp() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.given
}

func (p *Proxy) close() {
	_ = p.listen.Close()
	p.mu.Lock()
	p.closed = true
	p.heal.Broadcast()
	p.mu.Unlock()
	p.Cut()
	p.wait.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() { p.serve(client) })
	}
}

// serve carries one connection until both of its ends are closed.
func (p *Proxy) serve(client net.Conn) {
	c := &proxied{ends: [2]net.Conn{client, nil}}
	defer c.close()
	if !p.passed(Forth) { // SYN
		return
	}
	server, err := p.dial()
	if err != nil {
		return
	}
	c.ends[1] = server
	if !p.keep(c) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.carry(Forth, c) })
	both.Go(func() { p.carry(Back, c) })
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// keep makes a connection known to Cut; false when the proxy is closed already.
func (p *Proxy) keep(c *proxied) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return !p.closed
}

// dial waits until there is somebody to dial.
func (p *Proxy) dial() (net.Conn, error) {
	for end := time.Now().Add(Patience); ; {
		if address := p.target(); address != "" {
			return net.Dial("tcp", address)
		}
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed || time.Now().After(end) {
			return nil, errors.New("there is no server")
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when a daemon has written its address
	}
}

// held bounds what one direction of a connection holds back. It is more than the
// windows of gRPC let out: who hangs up is seen.
const held = 16 << 20

// lane is one direction of one connection.
type lane struct {
	buf  []byte // read, and not passed on yet
	over bool   // no more comes
}

// carry copies one direction. Reading goes on while the bytes are lost, so that
// the proxy sees who hangs up; the other side hears of it once it could.
func (p *Proxy) carry(d Direction, c *proxied) {
	l := &lane{}
	var reader sync.WaitGroup
	reader.Go(func() { p.fill(l, c.ends[d]) })
	defer reader.Wait()
	defer c.close()
	for {
		data, ok := p.next(d, l)
		if !ok {
			return
		}
		if _, err := c.ends[1-d].Write(data); err != nil {
			return
		}
	}
}

// fill reads until the end hangs up.
func (p *Proxy) fill(l *lane, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		l.buf = append(l.buf, buf[:n]...)
		if err != nil {
			l.over = true
			if (p.lost[Forth] || p.lost[Back]) && !errors.Is(err, net.ErrClosed) {
				p.given++
			}
		}
		p.heal.Broadcast()
		for err == nil && len(l.buf) > held && !p.closed {
			p.heal.Wait()
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// next takes what may be passed on; false at the end.
func (p *Proxy) next(d Direction, l *lane) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && (p.lost[d] || len(l.buf) == 0 && !l.over) {
		p.heal.Wait()
	}
	data := l.buf
	l.buf = nil
	p.heal.Broadcast()
	return data, len(data) > 0 && !p.closed
}

// passed waits until bytes of a direction get through; false when the proxy ends.
func (p *Proxy) passed(d Direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.lost[d] && !p.closed {
		p.heal.Wait()
	}
	return !p.closed
}

// Link is both ways between a worker and its scheduler: the worker dials one
// proxy, the scheduler the other.
type Link struct{ Up, Down *Proxy }

// LinkedWorker starts a worker whose every connection with the scheduler goes
// through a link.
func (c *Cluster) LinkedWorker(name, scripts string, flags ...string) (*Daemon, *Link) {
	c.T.Helper()
	self := &Daemon{Log: c.Path(name + ".log")}
	l := &Link{
		Up:   newProxy(c.T, func() string { return c.Address }),
		Down: newProxy(c.T, self.Address),
	}
	c.mu.Lock()
	c.links = append(c.links, l) // they end after the daemons, which take their leave over them
	c.mu.Unlock()
	flags = append(flags, "--scheduler", l.Up.Address(), "--advertise", l.Down.Address())
	return c.Worker(name, scripts, flags...), l
}

// Lose begins to lose what goes to the scheduler, to the worker, or both.
func (l *Link) Lose(toScheduler, toWorker bool) {
	l.Up.Lose(toScheduler, toWorker)
	l.Down.Lose(toWorker, toScheduler)
}

// Heal lets everything through again.
func (l *Link) Heal() { l.Lose(false, false) }

// Address is where a worker's newest life listens, as its log tells; "" when it
// has not told yet.
func (d *Daemon) Address() string {
	const up = `msg="worker is up" address=`
	text := d.LogText()
	i := strings.LastIndex(text, up)
	if i < 0 {
		return ""
	}
	address, _, whole := strings.Cut(text[i+len(up):], " ")
	if !whole {
		return ""
	}
	return address
}

// Restart kills a worker, starts it again, and waits until it serves.
func (d *Daemon) Restart(c *Cluster) {
	c.T.Helper()
	const up = `msg="worker is up"`
	before := strings.Count(d.LogText(), up)
	d.Kill()
	d.Start()
	c.Eventually(d.Name+" is up again", func() bool { return strings.Count(d.LogText(), up) > before && d.Address() != "" })
}
