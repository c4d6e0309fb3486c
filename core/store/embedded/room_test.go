package embedded

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

// tight is a file system that can be full.
type tight struct {
	vfs.FS
	full *atomic.Bool
}

func (t tight) GetDiskUsage(string) (vfs.DiskUsage, error) {
	u := vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 29}
	if t.full.Load() {
		u.AvailBytes = 0
	}
	return u, nil
}

func (t tight) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := t.FS.Create(name, c)
	return tightFile{f, t.full}, err
}

func (t tight) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := t.FS.ReuseForWrite(from, to, c)
	return tightFile{f, t.full}, err
}

type tightFile struct {
	vfs.File
	full *atomic.Bool
}

func (f tightFile) Write(p []byte) (int, error) {
	if f.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.Write(p)
}

// TestAFullDiskHoldsUpWritesAndLosesNothing: P16. Nothing new is taken, what is under
// way is neither answered nor lost, and all goes on once there is room.
func TestAFullDiskHoldsUpWritesAndLosesNothing(t *testing.T) {
	t.Parallel()
	disk := tight{vfs.NewMem(), &atomic.Bool{}}
	log := slog.New(slog.DiscardHandler)
	s, err := open("data", log, disk)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string) error {
		var b store.Batch
		b.Put([]byte(key), []byte("v"))
		return s.Apply(context.Background(), &b)
	}
	if err := errors.Join(put("before"), s.Room()); err != nil {
		t.Fatal(err)
	}
	disk.full.Store(true)
	done := make(chan error, 1)
	go func() { done <- put("meanwhile") }()
	for end := time.Now().Add(time.Minute); !s.room.waiting.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody found the disk full")
		}
	}
	if err := s.Room(); errs.KindOf(err) != errs.Exhausted || errs.ReasonOf(err) != "STORE_FULL" {
		t.Errorf("room is %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("a write that is not on disk was answered: %v", err)
	default:
	}
	disk.full.Store(false)
	if err := errors.Join(<-done, put("after"), s.Room(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = open("data", log, disk); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"before", "meanwhile", "after"} {
		if _, err := s.Get(context.Background(), []byte(key)); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
