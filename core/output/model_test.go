package output_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// patience is for what happens within milliseconds on an idle machine.
const patience = time.Minute

// model plays a worker's store and the jobs that write to it, and remembers
// every byte that a pipe took.
type model struct {
	t    *rapid.T
	dir  string
	rand *rand.ChaCha8

	store  *output.Store // nil while the worker is dead
	cancel context.CancelFunc
	done   chan error

	live, finished []*printer
	tails          []*tail
}

// printer is an attempt: its pipes and what went in.
type printer struct {
	key   job.Key
	lanes output.Lanes
	fds   [2][]int // of each stream: as several processes of a job hold it
	hold  [2]int   // read ends of the runner plugin
	want  [2][]byte
	over  bool // no process is left
	// removed: who has not read it to the end by then is told that it is gone.
	removed bool
}

// tail is a reader that follows while the store lives.
type tail struct {
	p      *printer
	id     output.StreamID
	from   uint64
	cancel context.CancelFunc
	wait   sync.WaitGroup
	got    []byte
	gap    *output.Chunk
	err    error
}

func (m *model) open() {
	s, err := output.Open(output.Config{Dir: m.dir}.Small())
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.store, m.cancel, m.done = s, cancel, make(chan error, 1)
	done := m.done
	go func() { done <- s.Run(ctx) }()
	for _, p := range m.live {
		if err := s.Resume(p.key, p.lanes, output.Options{UID: -1, GID: -1}); err != nil {
			m.t.Fatal(err)
		}
	}
}

// close ends the life of the store, as a worker that leaves or one that is killed.
func (m *model) close(end func(*output.Store)) {
	for _, r := range m.tails {
		m.settle(r)
	}
	m.tails = nil
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Error(err)
	}
	end(m.store)
	m.store = nil
}

func (m *model) leave() {
	m.close(func(s *output.Store) {
		if err := s.Close(); err != nil {
			m.t.Error(err)
		}
	})
}

func (m *model) crash() { m.close((*output.Store).Abandon) }

func (m *model) take() *printer {
	p := &printer{key: newKey()}
	var err error
	if p.lanes, err = m.store.Take(p.key, output.Options{UID: -1, GID: -1}); err != nil {
		m.t.Fatal(err)
	}
	for i, path := range []string{p.lanes.Stdout, p.lanes.Stderr} {
		p.hold[i] = m.fd(path, syscall.O_RDONLY)
		for range rapid.IntRange(1, 3).Draw(m.t, "processes") {
			p.fds[i] = append(p.fds[i], m.fd(path, syscall.O_RDWR))
		}
	}
	m.live = append(m.live, p)
	return p
}

func (m *model) fd(path string, mode int) int {
	fd, err := syscall.Open(path, mode|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return fd
}

// write prints n bytes, or what fits into the pipe while nobody drains it.
func (m *model) write(p *printer, i, process, n int) {
	b := make([]byte, n)
	_, _ = m.rand.Read(b)
	fd := p.fds[i][process]
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == nil {
			p.want[i] = append(p.want[i], b[:n]...)
			b = b[n:]
			continue
		}
		if !errors.Is(err, syscall.EAGAIN) {
			m.t.Fatal(err)
		}
		if m.store == nil {
			return
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())); n == 0 {
			m.t.Fatalf("nobody drains the pipe: %v", err)
		}
	}
}

// quit closes what the processes of a stream hold.
func (p *printer) quit(i int) {
	for _, fd := range p.fds[i] {
		_ = syscall.Close(fd)
	}
	p.fds[i] = nil
}

// finish seals what ended; both sums are those of the bytes that were written.
func (m *model) finish(p *printer) {
	select {
	case <-m.store.Drained(p.key):
	case <-time.After(patience):
		m.t.Fatal("not drained, and no process holds the streams")
	}
	stdout, stderr, err := m.store.Finish(context.Background(), p.key, true)
	if err != nil {
		m.t.Fatal(err)
	}
	for i, got := range []job.Stream{stdout, stderr} {
		if want := sumOf(p.want[i]); got != want {
			m.t.Fatalf("sealed as %v, %v were written", got, want)
		}
		_ = syscall.Close(p.hold[i])
	}
	m.finished = append(m.finished, p)
}

func sumOf(b []byte) job.Stream {
	sum := sha256.Sum256(b)
	return job.Stream{Size: uint64(len(b)), SHA256: hex.EncodeToString(sum[:])}
}

// read follows from an offset until it has all that was written.
func (m *model) read(p *printer, id output.StreamID, from uint64) {
	r, err := m.store.Read(p.key, id, from)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	want := p.want[id-1]
	for at := from; at < uint64(len(want)); {
		c, err := r.Next(ctx, true)
		if err != nil || c.Stream != id || c.Offset != at || len(c.Data) == 0 || !bytes.HasPrefix(want[at:], c.Data) {
			m.t.Fatalf("at %d of %d of stream %d: offset %d, %d bytes, gap %v, end %v, %v",
				at, len(want), id, c.Offset, len(c.Data), c.Gap, c.End, err)
		}
		at += uint64(len(c.Data))
	}
}

// readWhole reads a finished stream with its END.
func (m *model) readWhole(p *printer, id output.StreamID) {
	r, err := m.store.Read(p.key, id, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got, end, err := drain(ctx, r)
	if err != nil || !bytes.Equal(got, p.want[id-1]) || *end != sumOf(got) {
		m.t.Fatalf("stream %d: read %d bytes of %d, end %v, %v", id, len(got), len(p.want[id-1]), end, err)
	}
}

// tail starts a reader that goes on until the store ends.
func (m *model) tail(p *printer, id output.StreamID, from uint64) {
	r, err := m.store.Read(p.key, id, from)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &tail{p: p, id: id, from: from, cancel: cancel}
	f.wait.Go(func() {
		defer r.Close()
		for {
			c, err := r.Next(ctx, true)
			switch {
			case err != nil:
				f.err = err
				return
			case c.End != nil:
				f.err = io.EOF
				return
			case f.gap != nil || c.Offset != from+uint64(len(f.got)):
				f.err = errOffset
				return
			case c.Gap != nil:
				f.gap = &c
			}
			f.got = append(f.got, c.Data...)
		}
	})
	m.tails = append(m.tails, f)
}

// settle ends a reader and compares what it saw.
func (m *model) settle(f *tail) {
	f.cancel()
	f.wait.Wait()
	gone := f.p.removed && errs.ReasonOf(f.err) == output.ReasonGone
	if !gone && !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, io.EOF) {
		m.t.Fatalf("a follower ended with %v", f.err)
	}
	if g := f.gap; g != nil {
		m.t.Fatalf("a follower of %d bytes saw a gap from %d: %+v, removed %v", len(f.p.want[f.id-1]), g.Offset, *g.Gap, f.p.removed)
	}
	if want := f.p.want[f.id-1]; !bytes.HasPrefix(want[min(f.from, uint64(len(want))):], f.got) {
		m.t.Fatalf("a follower from %d saw %d other bytes", f.from, len(f.got))
	}
}

// pick chooses one; without any the action is empty.
func pick(t *rapid.T, from []*printer, do func(*printer)) {
	if len(from) > 0 {
		do(rapid.SampledFrom(from).Draw(t, "attempt"))
	}
}

// actions are what can happen to a worker and its jobs; what cannot happen now
// does nothing.
func (m *model) actions() map[string]func(*rapid.T) {
	always := func(f func(*rapid.T)) func(*rapid.T) {
		return func(t *rapid.T) {
			m.t = t
			f(t)
		}
	}
	up := func(f func(*rapid.T)) func(*rapid.T) {
		return always(func(t *rapid.T) {
			if m.store != nil {
				f(t)
			}
		})
	}
	where := func(t *rapid.T, p *printer) (output.StreamID, uint64) {
		id := output.StreamID(rapid.IntRange(1, 2).Draw(t, "stream"))
		return id, uint64(rapid.IntRange(0, len(p.want[id-1])).Draw(t, "offset"))
	}
	return map[string]func(*rapid.T){
		"take":  up(func(*rapid.T) { m.take() }),
		"write": always(func(t *rapid.T) { pick(t, m.live, m.print) }),
		"close a stream": always(func(t *rapid.T) {
			pick(t, m.live, func(p *printer) { p.quit(rapid.IntRange(0, 1).Draw(t, "stream")) })
		}),
		"end":    always(func(t *rapid.T) { pick(t, m.live, (*printer).end) }),
		"finish": up(func(*rapid.T) { m.finishOver() }),
		"remove": up(func(t *rapid.T) { pick(t, m.finished, m.remove) }),
		"read": up(func(t *rapid.T) {
			pick(t, slices.Concat(m.live, m.finished), func(p *printer) {
				id, from := where(t, p)
				m.read(p, id, from)
			})
		}),
		"follow": up(func(t *rapid.T) {
			pick(t, m.live, func(p *printer) {
				id, from := where(t, p)
				m.tail(p, id, from)
			})
		}),
		"leave":  up(func(*rapid.T) { m.leave() }),
		"crash":  up(func(*rapid.T) { m.crash() }),
		"reopen": always(func(*rapid.T) { m.reopen() }),
		"":       always(func(*rapid.T) { m.check() }),
	}
}

// print lets one of the processes of an attempt write.
func (m *model) print(p *printer) {
	i := rapid.IntRange(0, 1).Draw(m.t, "stream")
	if len(p.fds[i]) > 0 {
		m.write(p, i, rapid.IntRange(0, len(p.fds[i])-1).Draw(m.t, "process"),
			rapid.SampledFrom([]int{1, 100, 4095, 5000, 20_000, 70_000}).Draw(m.t, "bytes"))
	}
}

// end ends all processes of an attempt.
func (p *printer) end() {
	p.quit(0)
	p.quit(1)
	p.over = true
}

func (m *model) remove(p *printer) {
	if err := m.store.Remove(p.key); err != nil {
		m.t.Fatal(err)
	}
	p.removed = true
	m.finished = without(m.finished, p)
}

func without(list []*printer, p *printer) []*printer {
	return slices.DeleteFunc(slices.Clone(list), func(x *printer) bool { return x == p })
}

func (m *model) reopen() {
	if m.store == nil {
		m.open()
	}
}

// finishOver seals every attempt without processes.
func (m *model) finishOver() {
	for _, p := range m.live {
		if p.over {
			m.finish(p)
			m.live = without(m.live, p)
		}
	}
}

// check holds after every action: the store knows what it must, nothing else.
func (m *model) check() {
	if m.store == nil {
		return
	}
	for _, p := range m.finished {
		stdout, stderr, ok := m.store.Sizes(p.key)
		if !ok || stdout != uint64(len(p.want[0])) || stderr != uint64(len(p.want[1])) {
			m.t.Fatalf("sizes %d and %d, want %d and %d", stdout, stderr, len(p.want[0]), len(p.want[1]))
		}
	}
	if got, want := len(m.store.Keys()), len(m.live)+len(m.finished); got != want {
		m.t.Fatalf("%d attempts, want %d", got, want)
	}
}

// TestP8OutputOfAnyHistoryIsByteExact: jobs write, workers leave, die and come
// back, readers read anywhere; no byte is lost, moved or made up.
func TestP8OutputOfAnyHistoryIsByteExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "store") //nolint:usetesting // many in one test
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{t: rt, dir: dir, rand: rand.NewChaCha8([32]byte{1})}
		m.open()
		defer m.abandon()
		rt.Repeat(m.actions())
		m.t = rt
		m.reopen()
		for _, p := range m.live {
			p.end()
		}
		m.finishOver()
		for range 2 { // as it was written, and as it is found again
			for _, p := range m.finished {
				m.readWhole(p, output.Stdout)
				m.readWhole(p, output.Stderr)
			}
			m.crash()
			m.open()
			m.check()
		}
	})
}

// abandon frees what a failed run left, so that shrinking does not run out of
// descriptors.
func (m *model) abandon() {
	for _, f := range m.tails {
		f.cancel()
		f.wait.Wait()
	}
	for _, p := range m.live {
		p.quit(0)
		p.quit(1)
		_ = syscall.Close(p.hold[0])
		_ = syscall.Close(p.hold[1])
	}
	if m.store != nil {
		m.cancel()
		<-m.done
		m.store.Abandon()
	}
}
