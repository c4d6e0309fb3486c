package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAWatchEndsWhenNobodyReads: "drover jobs --watch | head -1" stood there until
// the next job came.
func TestAWatchEndsWhenNobodyReads(t *testing.T) {
	t.Parallel()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	ctx, stop := whileRead(t.Context(), write)
	defer stop()
	if unread(write) || ctx.Err() != nil {
		t.Error("it is taken for unread while somebody has it open")
	}
	if err := read.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if err := context.Cause(ctx); !errors.Is(err, unix.EPIPE) {
		t.Errorf("it ended with %v", err)
	}
}

func TestAWatchIntoAFileOrABufferGoesOn(t *testing.T) {
	t.Parallel()
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if unread(file) {
		t.Error("a file is taken for a pipe without readers")
	}
	ctx, stop := whileRead(t.Context(), io.Discard)
	defer stop()
	if ctx.Err() != nil {
		t.Error("a buffer is taken for one")
	}
}
