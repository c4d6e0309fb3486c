// Package footprint keeps the memory of a daemon small while it is at rest: it
// gives back what only its start, or a burst of work, has needed.
package footprint

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// When a process counts as at rest: so little was allocated from one look to
// the next. It is trimmed when enough was allocated since it was trimmed last,
// so that heartbeats alone are no reason for collecting garbage all the time.
const (
	look    = 2 * time.Second
	restful = 1 << 20 // bytes
	worth   = 2 << 20 // bytes
)

// What the runtime tells of itself, see runtime/metrics.
const (
	allocated  = "/gc/heap/allocs:bytes"
	live       = "/gc/heap/live:bytes"
	stacks     = "/memory/classes/heap/stacks:bytes"
	percentNow = "/gc/gogc:percent"
)

// Keep trims the process whenever it has come to rest, and has garbage collected as
// its size and its work want it, until ctx ends. Where memory cannot be given back, it
// says so once and does not try again. A percentage that the process was started with
// (GOGC) is kept, but for that of a large process with little to do. The collector is the
// whole process's: one call at a time.
func Keep(ctx context.Context, log *slog.Logger) { keep(ctx, log, collections(ctx)) }

func keep(ctx context.Context, log *slog.Logger, collected <-chan struct{}) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: allocated}, {Name: live}, {Name: stacks}, {Name: percentNow}}
	metrics.Read(sample)
	g := newGarbage(sample[3].Value.Uint64())
	var p pace
	for trims := true; ; {
		if percent, changed := g.next(sample[1].Value.Uint64()); changed {
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-collected:
			metrics.Read(sample)
			continue
		case <-tick.C:
			metrics.Read(sample)
		}
		g.look(sample[0].Value.Uint64(), sample[1].Value.Uint64()+sample[2].Value.Uint64())
		if !p.rests(sample[0].Value.Uint64()) || !trims {
			continue
		}
		if err := Trim(); err != nil {
			log.Warn("memory not given back", "error", err)
			trims = false
		}
	}
}

// pace decides when to trim.
type pace struct {
	begun         bool
	last, trimmed uint64 // allocated until the last look, and the last trim
}

// rests takes what was allocated in all and tells whether to trim now. The
// start of a process is a burst of work like any other.
func (p *pace) rests(allocated uint64) bool {
	resting := p.begun && allocated-p.last < restful
	first := p.trimmed == 0
	p.begun, p.last = true, allocated
	if !resting || !first && allocated-p.trimmed < worth {
		return false
	}
	p.trimmed = allocated
	return true
}

// Trim collects garbage, returns free memory to the system, and lets go of the
// pages of the program itself: what is used comes back from the page cache at
// once, and most of a program is used at its start only.
func Trim() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read the memory map: %w", err)
	}
	for _, m := range clean(maps, exe) {
		// MADV_DONTNEED, see madvise(2): pages that are as in the file are dropped
		// from this process and read again when they are touched.
		if _, _, e := syscall.Syscall(syscall.SYS_MADVISE, m.from, m.to-m.from, syscall.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("give back the program's pages: %w", e)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// clean finds the mappings of a file that nobody can write to and nobody has
// written to: those of a dynamically linked program that were relocated are not
// among them.
func clean(smaps []byte, file string) []mapping {
	var out []mapping
	candidate := false
	for line := range bytes.Lines(smaps) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) < 2:
		case !strings.HasSuffix(fields[0], ":"): // the head of a mapping: range, rights, ..., file
			from, to, ok := parseRange(fields[0])
			candidate = ok && fields[len(fields)-1] == file && fields[1][1] == '-'
			if candidate {
				out = append(out, mapping{from, to})
			}
		case candidate && fields[0] == "Anonymous:" && fields[1] != "0":
			out, candidate = out[:len(out)-1], false
		}
	}
	return out
}

func parseRange(s string) (from, to uintptr, ok bool) {
	low, high, found := strings.Cut(s, "-")
	f, errFrom := strconv.ParseUint(low, 16, 64)
	t, errTo := strconv.ParseUint(high, 16, 64)
	return uintptr(f), uintptr(t), found && errFrom == nil && errTo == nil
}
