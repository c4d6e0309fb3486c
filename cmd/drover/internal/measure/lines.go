package measure

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// LineScript writes lines that say when they were written. The clock is the
// machine's CLOCK_MONOTONIC, which the reader on the same machine shares.
const LineScript = `import os, sys, time
for _ in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    os.write(1, b"%d\n" % time.monotonic_ns())
`

// now reads the clock that the lines are stamped with.
func now() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// Stamps takes output as it arrives and notes how old each line is.
type Stamps struct {
	rest []byte
	ages []time.Duration
}

// Write implements io.Writer.
func (s *Stamps) Write(p []byte) (int, error) {
	at, err := now()
	if err != nil {
		return 0, err
	}
	s.rest = append(s.rest, p...)
	for {
		line, rest, whole := bytes.Cut(s.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		written, err := strconv.ParseInt(string(line), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read a stamp: %w", err)
		}
		s.ages = append(s.ages, at-time.Duration(written))
		s.rest = rest
	}
}

// Lines samples the age of lines at their arrival. run makes a job of the line
// script with these arguments and copies its output.
func Lines(count int, every time.Duration, run func(ctx context.Context, args []string, out io.Writer) error) Sampler {
	args := []string{strconv.Itoa(count), strconv.FormatFloat(every.Seconds(), 'f', -1, 64)}
	return func(ctx context.Context) ([]time.Duration, error) {
		var s Stamps
		if err := run(ctx, args, &s); err != nil {
			return nil, err
		}
		if len(s.ages) != count || len(s.rest) > 0 {
			return nil, fmt.Errorf("%d of %d lines arrived", len(s.ages), count)
		}
		return s.ages, nil
	}
}
