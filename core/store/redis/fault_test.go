package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
)

func config(t *testing.T, url string) redis.Config {
	t.Helper()
	c, err := redis.ParseURL(url, nothing)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// raw is a client beside the store.
func raw(t *testing.T, server *redistest.Server) *goredis.Client {
	t.Helper()
	c := goredis.NewClient(&goredis.Options{Network: "unix", Addr: server.Socket})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// journal is a log that tells of lines.
type journal struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
	line chan string
}

func newJournal() *journal { return &journal{line: make(chan string, 64)} }

// Write implements io.Writer.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case j.line <- string(p):
	default: // nobody looks
	}
	return j.text.Write(p)
}

func (j *journal) log() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// P1, P7: Redis is killed again and again while four writers write. Whatever was
// acknowledged is there, every batch is whole, and no writer saw an error.
func TestAcknowledgedBatchesSurviveAKillOfRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var (
		writers sync.WaitGroup
		stop    atomic.Bool
		counts  [4]int
	)
	acknowledged, failed := make(chan struct{}, 1000), make(chan struct{}, len(counts))
	defer func() {
		stop.Store(true)
		writers.Wait()
	}()
	for w := range counts {
		s := open(t, server.URL("patience=5m"))
		writers.Go(func() {
			for n := 0; !stop.Load(); n++ {
				var b store.Batch
				b.Put(fmt.Appendf(nil, "%d/%06d/a", w, n), fmt.Append(nil, n))
				b.Put(fmt.Appendf(nil, "%d/%06d/b", w, n), fmt.Append(nil, n))
				if err := s.Apply(context.Background(), &b); err != nil {
					t.Errorf("writer %d, batch %d: %v", w, n, err)
					failed <- struct{}{}
					return
				}
				counts[w] = n + 1
				select {
				case acknowledged <- struct{}{}:
				default: // enough of them
				}
			}
		})
	}
	for range 4 {
		for range 50 {
			select {
			case <-acknowledged:
			case <-failed:
				t.FailNow() // the deferred clean-up ends the writers
			}
		}
		server.Kill()
		server.Up(t)
	}
	stop.Store(true)
	writers.Wait()
	s := open(t, server.URL())
	for w, n := range counts {
		got := 0
		for _, err := range s.Scan(t.Context(), store.Prefix(fmt.Appendf(nil, "%d/", w))) {
			if err != nil {
				t.Fatal(err)
			}
			got++
		}
		if got != 2*n {
			t.Errorf("writer %d: %d records of %d batches", w, got, n)
		}
	}
}

// lossy passes on what clients and Redis say, until it is told to lose an answer.
type lossy struct {
	url  string
	lose atomic.Int64 // how many answers are still to be lost, each with its connection
}

func startLossy(t *testing.T, server *redistest.Server) *lossy {
	t.Helper()
	path := filepath.Join(filepath.Dir(server.Socket), "lossy")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{url: "redis+unix://" + path}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { l.serve(t, client, server.Socket) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		running.Wait()
	})
	return l
}

func (l *lossy) serve(t *testing.T, client net.Conn, to string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("unix", to)
	if err != nil {
		t.Error(err)
		return
	}
	var asking sync.WaitGroup
	asking.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	})
	answer := make([]byte, 64<<10)
	for {
		n, err := server.Read(answer)
		if err != nil || l.lose.Load() > 0 && l.lose.Add(-1) >= 0 {
			break
		}
		if _, err := client.Write(answer[:n]); err != nil {
			break
		}
	}
	_, _ = client.Close(), server.Close()
	asking.Wait()
}

// A batch is repeated when its answer got lost, and made once all the same: its
// own guard would refuse it the second time.
func TestABatchWhoseAnswerGotLostIsMadeOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	l := startLossy(t, server)
	log := newJournal()
	c := config(t, l.url)
	c.Log = log.log()
	s := openConfig(t, c)
	if err := put(t, s, "warm", "up"); err != nil { // the script is known from here on
		t.Fatal(err)
	}
	for i := range 5 {
		key := fmt.Appendf(nil, "k%d", i)
		b := store.Batch{Guards: []store.Guard{{Key: key}}}
		b.Put(key, []byte("v"))
		l.lose.Store(1)
		if err := s.Apply(t.Context(), &b); err != nil {
			t.Errorf("batch %d: %v", i, err)
		}
		if l.lose.Load() > 0 {
			t.Errorf("batch %d: no answer got lost", i)
		}
		if err := s.Apply(t.Context(), &b); !errors.Is(err, store.ErrFenced) {
			t.Errorf("batch %d, asked for again: %v", i, err)
		}
	}
	l.lose.Store(1)
	if term, err := store.RaiseTerm(t.Context(), s); err != nil || term != 1 {
		t.Errorf("the term is %d, %v", term, err)
	}
	if !strings.Contains(log.String(), "the store cannot be reached") || !strings.Contains(log.String(), "the store is back") {
		t.Errorf("the log: %s", log)
	}
}

// A server that hangs has the same batch twice in its sockets when it wakes.
func TestABatchSentTwiceToAHangingServerIsMadeOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	log := newJournal()
	c := config(t, server.URL("timeout=500ms", "patience=5m"))
	c.Log = log.log()
	s := openConfig(t, c)
	server.Signal(t, syscall.SIGSTOP)
	done := make(chan error)
	go func() {
		b := store.Batch{Guards: []store.Guard{{Key: []byte("k")}}}
		b.Put([]byte("k"), []byte("v"))
		done <- s.Apply(t.Context(), &b)
	}()
	<-log.line // the first try is over
	server.Signal(t, syscall.SIGCONT)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Acknowledged records that are gone are told, not written over.
func TestAServerThatForgotIsFound(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	term, err := store.RaiseTerm(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := raw(t, server).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := put(t, store.Fence(s, term), "k", "v"); errs.ReasonOf(err) != "STORE_LOST_WRITES" {
			t.Errorf("got %v", err)
		}
	}
}

func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL("patience=50ms"))
	server.Kill()
	_, err := s.Get(t.Context(), []byte("k"))
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Unavailable || e.Reason != "STORE_UNREACHABLE" || e.Hint == "" {
		t.Errorf("get: %v", err)
	}
	if err := put(t, s, "k", "v"); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("apply: %v", err)
	}
	if _, err := redis.Open(t.Context(), config(t, server.URL("patience=50ms"))); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("open: %v", err)
	}
}

// Whoever waits for Redis waits no longer than for a Close or for its context.
func TestCloseAndContextEndTheWait(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	log := newJournal()
	c := config(t, server.URL("patience=1h"))
	c.Log = log.log()
	s := openConfig(t, c)
	server.Kill()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	ask := func(ctx context.Context) { _, err := s.Get(ctx, []byte("k")); done <- err }
	go ask(ctx)
	<-log.line
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	writing := make(chan error)
	go ask(t.Context())
	go func() { writing <- put(t, s, "k", "v") }()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, store.ErrClosed) {
		t.Errorf("get after close: %v", err)
	}
	if err := <-writing; !errors.Is(err, store.ErrClosed) {
		t.Errorf("apply after close: %v", err)
	}
}

// A batch that Redis refuses half way would be one that is half made.
func TestARefusedBatchChangesNothing(t *testing.T) {
	t.Parallel()
	t.Run("out of memory", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
		s := open(t, server.URL())
		big := strings.Repeat("x", 1<<20)
		var err error
		n := 0
		for ; err == nil && n < 64; n++ {
			var b store.Batch
			b.Put(fmt.Appendf(nil, "%02d/a", n), []byte(big))
			b.Delete([]byte("none"))
			b.Put(fmt.Appendf(nil, "%02d/b", n), nil)
			err = s.Apply(t.Context(), &b)
		}
		if errs.KindOf(err) != errs.Exhausted || errs.ReasonOf(err) != "STORE_FULL" {
			t.Errorf("after %d batches: %v", n, err)
		}
		if got := len(all(t, s)); got != 2*(n-1) {
			t.Errorf("%d records of %d batches", got, n-1)
		}
	})
	t.Run("keys of another", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		other := raw(t, server)
		for _, name := range []string{"keys", "values", "writers", "snapshots"} {
			prefix := "p" + name
			s := open(t, server.URL("prefix="+prefix))
			if err := other.Set(t.Context(), "{"+prefix+"}:"+name, "mine", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := put(t, s, "k", "v"); err == nil {
				t.Errorf("%s: no error", name)
			}
			if keys, err := other.Keys(t.Context(), "{"+prefix+"}*").Result(); err != nil || len(keys) != 1 {
				t.Errorf("%s: %v, %v", name, keys, err)
			}
		}
	})
}

func all(t *testing.T, s store.Store) []store.Pair {
	t.Helper()
	var out []store.Pair
	for p, err := range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// Scans leave nothing behind, whether they come to their end or not, and neither
// does a store that is closed.
func TestScansLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	var b store.Batch
	for i := range 2000 {
		b.Put(fmt.Appendf(nil, "%05d", i), bytes.Repeat([]byte{'v'}, 4<<10)) // pages end by bytes, too
	}
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		count := 0
		for p, err := range s.Scan(t.Context(), store.Range{Reverse: n == 1}) {
			if err != nil {
				t.Fatal(err)
			}
			if count++; n == 2 && count == 700 {
				break
			}
			if count%500 == 1 {
				if err := put(t, s, string(p.Key), "changed"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if want := []int{2000, 2000, 700}[n]; count != want {
			t.Errorf("scan %d: %d pairs, want %d", n, count, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	keys, err := raw(t, server).Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 3 {
		t.Errorf("left are %v, %v; want the keys, the values and the mark", keys, err)
	}
}

// A snapshot that its reader gave up stops costing after a while, and a reader
// that comes back too late is told so.
func TestASnapshotEnds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s, other := open(t, server.URL()), raw(t, server)
	var b store.Batch
	for i := range 1000 {
		b.Put(fmt.Appendf(nil, "%05d", i), nil)
	}
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	var last error
	count := 0
	for _, err := range s.Scan(t.Context(), store.Range{}) {
		if last = err; err != nil {
			break
		}
		if count++; count > 1 {
			continue
		}
		ids, err := other.ZRange(t.Context(), "{drover}:snapshots", 0, -1).Result()
		if err != nil || len(ids) != 1 {
			t.Fatal(ids, err)
		}
		if err := put(t, s, "00500", "changed"); err != nil {
			t.Fatal(err)
		}
		// As if its time had passed.
		if err := other.ZAdd(t.Context(), "{drover}:snapshots", goredis.Z{Score: 1, Member: ids[0]}).Err(); err != nil {
			t.Fatal(err)
		}
		if err := put(t, s, "00501", "changed"); err != nil {
			t.Fatal(err)
		}
	}
	if errs.ReasonOf(last) != "SNAPSHOT_GONE" {
		t.Errorf("after %d pairs: %v", count, last)
	}
	if keys, err := other.Keys(t.Context(), "*snapshot*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("left are %v, %v", keys, err)
	}
}
