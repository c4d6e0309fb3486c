package redis_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
)

// olderCopy puts back the files that the server had when it was called first, once
// what it returns is called.
func olderCopy(t *testing.T, server *redistest.Server) (putBack func()) {
	t.Helper()
	files := filepath.Join(server.Dir, "appendonlydir")
	saved := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(saved, os.DirFS(files)); err != nil {
		t.Fatal(err)
	}
	return func() {
		server.Kill()
		if err := errors.Join(os.RemoveAll(files), os.CopyFS(files, os.DirFS(saved))); err != nil {
			t.Fatal(err)
		}
		server.Up(t)
	}
}

func wantLost(t *testing.T, what string, err error) {
	t.Helper()
	var e *errs.Error
	if !errors.Is(err, store.ErrLostWrites) || !errors.As(err, &e) || e.Reason != store.ReasonLostWrites || e.Hint == "" {
		t.Errorf("%s: %v", what, err)
	}
}

// TestP3_OlderCopyOfRedis_IsNoticedByEveryScheduler: the active one at its next write
// and at its next renewal, one that stands by before it takes over, one that was
// started anew by what it has written down. None of them goes on.
func TestP3_OlderCopyOfRedis_IsNoticedByEveryScheduler(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	seen := filepath.Join(t.TempDir(), "seen")
	c := config(t, server.URL())
	c.Seen = seen
	active, standby := openConfig(t, c), open(t, server.URL())
	lease, err := active.Acquire(t.Context(), "active", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	fenced := store.Fence(active, lease.Term())
	if err := put(t, fenced, "old", "v"); err != nil {
		t.Fatal(err)
	}
	putBack := olderCopy(t, server)
	for i := range 6 {
		if err := put(t, fenced, fmt.Sprint("new", i), "v"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := standby.Acquire(t.Context(), "standby", time.Hour); errs.ReasonOf(err) != redis.ReasonHeld {
		t.Fatal(err)
	}
	putBack()
	for name, ask := range map[string]func() error{
		"a write": func() error { return put(t, fenced, "k", "v") },
		"a renewal": func() error {
			err := lease.Renew(t.Context())
			if lease.Left() > 0 {
				t.Error("the lease lasts on")
			}
			return err
		},
		"the standby": func() error {
			_, err := standby.Await(t.Context(), "standby", time.Second, nil)
			return err
		},
		"the standby, by force": func() error {
			_, err := standby.Seize(t.Context(), "standby", time.Second)
			return err
		},
	} {
		wantLost(t, name, ask())
	}
	_, err = open(t, server.URL()).Seize(t.Context(), "stranger", time.Second)
	wantLost(t, "one that had seen nothing", err)
	if err := active.Close(); err != nil {
		t.Fatal(err)
	}
	c.Seen = filepath.Join(t.TempDir(), "another")
	again := openConfig(t, func() redis.Config { c.Seen = seen; return c }())
	_, err = again.Seize(t.Context(), "active", time.Second)
	wantLost(t, "a later life", err)
	if _, err := again.Get(t.Context(), []byte("k")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("something was written: %v", err)
	}

	// The way back: an administrator accepts what is there, and all go on with it.
	if err := raw(t, server).Del(t.Context(), "{drover}:lease").Err(); err != nil { // as if its time had passed
		t.Fatal(err)
	}
	if err := open(t, server.URL()).Accept(t.Context(), 1000, false); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*redis.Store{"the standby": standby, "a later life": again, "a new one": open(t, server.URL())} {
		l, err := s.Seize(t.Context(), name, time.Second)
		if err != nil || l.Term() < lease.Term()+1000 {
			t.Fatalf("%s: term %v after %d, %v", name, l, lease.Term(), err)
		}
		if err := put(t, store.Fence(s, l.Term()), "k", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A replica that had not received everything and is promoted is an older copy.
func TestP3_LaggingReplicaIsPromoted_IsNoticed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	replica := redistest.Start(t)
	port := redistest.Port(t)
	server.Change(t, "--port", port)
	s := open(t, server.URL())
	lease, err := s.Acquire(t.Context(), "active", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r := raw(t, replica)
	if err := r.ReplicaOf(t.Context(), "127.0.0.1", port).Err(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if n, err := r.HLen(t.Context(), "{drover}:values").Result(); err == nil && n > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replica did not catch up")
		}
	}
	if err := r.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil { // from here on it lags
		t.Fatal(err)
	}
	fenced := store.Fence(s, lease.Term())
	if err := put(t, fenced, "k", "v"); err != nil {
		t.Fatal(err)
	}
	// The address is now the replica's.
	if err := os.Rename(replica.Socket, server.Socket); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	wantLost(t, "a write", put(t, fenced, "k2", "v"))
	wantLost(t, "a renewal", lease.Renew(t.Context()))
}

// TestAcceptLeavesAnActiveSchedulerAlone: it would be fenced under its jobs.
func TestAcceptLeavesAnActiveSchedulerAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	if _, err := s.Acquire(t.Context(), "s1", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := open(t, server.URL()).Accept(t.Context(), 1000, true); errs.ReasonOf(err) != redis.ReasonHeld || !strings.Contains(err.Error(), "s1") {
		t.Errorf("got %v", err)
	}
	if _, err := s.AtRest(t.Context()); errs.ReasonOf(err) != "STORE_IN_USE" {
		t.Errorf("at rest: %v", err)
	}
}

// A file of the mark that is damaged is named, and the scheduler starts.
func TestADamagedMarkIsNamed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for _, text := range []string{"", "{", "null", `{"store":"0/drover","epoch":-1}`, "\x00\xff"} {
		log := newJournal()
		c := config(t, server.URL())
		c.Seen, c.Log = filepath.Join(t.TempDir(), "seen"), log.log()
		if err := os.WriteFile(c.Seen, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openConfig(t, c)
		if err := put(t, s, "k", "v"); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if text != "null" && !strings.Contains(log.String(), c.Seen) {
			t.Errorf("%q: the log is %s", text, log)
		}
	}
}

// TestP16_FullRedis_RefusesWhatIsNewAndKeepsRoom: nothing new is accepted while there is
// still room for what was; a batch that finds none waits and is made when there is.
func TestP16_FullRedis_RefusesWhatIsNewAndKeepsRoom(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "40mb", "--maxmemory-policy", "noeviction")
	log := newJournal()
	c := config(t, server.URL())
	c.Await, c.Log = true, log.log()
	s, admin := openConfig(t, c), raw(t, server)
	if err := s.Room(); err != nil {
		t.Fatal("an empty one has no room:", err)
	}
	big := strings.Repeat("x", 1<<20)
	n := 0
	for ; n < 60 && s.Room() == nil; n++ {
		if err := put(t, s, fmt.Sprint("k", n), big); err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(250 * time.Millisecond / 4)
	}
	if err := s.Room(); errs.ReasonOf(err) != "STORE_FULL" || errs.KindOf(err) != errs.Exhausted {
		t.Fatalf("after %d MiB: %v", n, err)
	}
	for i := range 50 { // stops and ends
		if err := put(t, s, fmt.Sprint("end", i), "v"); err != nil {
			t.Fatal("no room was kept:", err)
		}
	}
	if err := admin.ConfigSet(t.Context(), "maxmemory", "2mb").Err(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var b store.Batch
		b.Put([]byte("late"), []byte("v"))
		done <- s.Apply(context.Background(), &b)
	}()
	for strings.Count(log.String(), "takes no writes") == 0 {
		<-log.line
	}
	if err := s.Room(); errs.ReasonOf(err) != "STORE_FULL" || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("while it refuses: %v", err)
	}
	if l, err := s.Acquire(t.Context(), "s1", time.Hour); err != nil || l.Renew(t.Context()) != nil {
		t.Errorf("nobody can be the active scheduler of a full one: %v", err)
	}
	if _, err := s.Get(t.Context(), []byte("k0")); err != nil {
		t.Errorf("reads: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("it was answered: %v", err)
	default:
	}
	if err := admin.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	time.Sleep(250 * time.Millisecond) // it is not asked for its memory more often
	if err := s.Room(); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), []byte("late")); err != nil {
		t.Error(err)
	}
}

// A replica, and one that cannot write its files, are waited for as well: longer than
// the patience with one that does not answer.
func TestP16_RefusingRedis_IsWaitedFor(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	log := newJournal()
	c := config(t, server.URL("patience=50ms"))
	c.Await, c.Log = true, log.log()
	s, admin := openConfig(t, c), raw(t, server)
	if err := admin.ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var b store.Batch
		b.Put([]byte("k"), []byte("v"))
		done <- s.Apply(context.Background(), &b)
	}()
	for !strings.Contains(log.String(), "takes no writes") {
		<-log.line
	}
	time.Sleep(300 * time.Millisecond) // six times its patience
	if err := s.Room(); errs.ReasonOf(err) != "STORE_FULL" || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("room is %v", err)
	}
	if err := admin.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-done, s.Room()); err != nil {
		t.Error(err)
	}
}

// TestASilentRedisIsToldAsWhatItIs, and a lease that it gives when it wakes is not
// taken for another's.
func TestASilentRedisIsToldAsWhatItIs(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL("timeout=100ms", "patience=200ms"))
	if err := s.Trouble(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Term(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	server.Signal(t, syscall.SIGSTOP)
	_, err := s.Acquire(t.Context(), "me", time.Hour)
	if errs.ReasonOf(err) != "STORE_UNREACHABLE" {
		t.Errorf("acquire: %v", err)
	}
	if err := s.Trouble(); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "has not answered for") {
		t.Errorf("trouble is %v", err)
	}
	server.Signal(t, syscall.SIGCONT)
	if l, err := s.Acquire(t.Context(), "me", time.Hour); err != nil || l.Left() <= 0 {
		t.Errorf("after it woke: %v", err)
	}
	if err := s.Trouble(); err != nil {
		t.Error(err)
	}
}

// A lease that was given while nobody could hear it is its holder's, not another's.
func TestALeaseWhoseAnswerGotLostIsOnesOwn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	l := startLossy(t, server)
	s := open(t, l.url+"?patience=1ms")
	if _, err := s.Get(t.Context(), []byte("k")); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	first, err := s.Acquire(t.Context(), "me", time.Hour) // the script is known from here on
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		l.lose.Store(2) // one of them is the script's
		if _, err = s.Acquire(t.Context(), "me", time.Hour); err != nil {
			break
		}
	}
	l.lose.Store(0)
	if _, err := s.Await(t.Context(), "me", time.Hour, func(holder string) { t.Errorf("it waits for %s", holder) }); err != nil {
		t.Error(err)
	}
}

// A key of another program, and a record that has gone, have a name and a hint.
func TestDamagedKeysAreNamed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	other := raw(t, server)
	for _, name := range []string{"keys", "values", "writers", "snapshots", "water", "lease"} {
		prefix := "p" + name
		s := open(t, server.URL("prefix="+prefix))
		key := "{" + prefix + "}:" + name
		if err := other.LPush(t.Context(), key, "mine").Err(); err != nil {
			t.Fatal(err)
		}
		_, err := s.Acquire(t.Context(), "me", time.Hour)
		if err == nil {
			err = put(t, s, "k", "v")
		}
		var e *errs.Error
		if !errors.As(err, &e) || e.Reason != "STORE_DAMAGED" || !strings.Contains(err.Error(), key+" is a list") || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := open(t, server.URL())
	if err := errors.Join(put(t, s, "a\x00b", "v"), put(t, s, "c", "v"), other.HDel(t.Context(), "{drover}:values", "a\x00b").Err()); err != nil {
		t.Fatal(err)
	}
	var err error
	for _, err = range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			break
		}
	}
	var e *errs.Error
	if !errors.As(err, &e) || e.Reason != "STORE_DAMAGED" || !strings.Contains(err.Error(), `{drover}:values has no value for the key "a\x00b"`) || e.Hint == "" {
		t.Errorf("a key without a value: %v", err)
	}
	if _, err := s.AtRest(t.Context()); errs.ReasonOf(err) != "STORE_DAMAGED" {
		t.Errorf("at rest: %v", err)
	}
}
