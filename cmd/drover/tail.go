package main

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Bytes that the last lines are looked for in: the window grows until they are
// found.
const (
	bytesPerLine = 256
	firstWindow  = 64 << 10
	lastWindow   = 1 << 40
)

// tail writes the last n lines that there are now. The summary tells where to
// go on. The other side knows bytes only: a window of them is read from the
// end and widened until it holds the lines.
func tail(ctx context.Context, c follow.Config, n int) (follow.Summary, error) {
	window := uint64(max(firstWindow, n*bytesPerLine))
	if n == 0 {
		window = 1 // enough to learn the offsets
	}
	for {
		last := &lastLines{want: n, dropped: map[droverv1.Stream]bool{}}
		now := c
		now.Sink = last
		now.Request = &droverv1.StreamOutputRequest{
			JobId: c.Request.GetJobId(), Attempt: c.Request.GetAttempt(), Stream: c.Request.GetStream(), TailBytes: &window,
		}
		sum, err := follow.Run(ctx, now)
		if err != nil || n == 0 {
			return sum, err
		}
		if last.sure(&sum) {
			sum.Missing = nil // whatever is missing lies before the wanted lines
			return sum, last.flush(c.Sink)
		}
		if fromTheBeginning(&sum) || window >= lastWindow {
			return sum, last.flush(c.Sink)
		}
		window *= 8
	}
}

// fromTheBeginning tells whether a wider window would show nothing more.
func fromTheBeginning(sum *follow.Summary) bool {
	for stream, p := range positions(sum) {
		lost := slices.ContainsFunc(sum.Missing, func(m follow.Missing) bool { return m.Stream == stream })
		if p.First > 0 && !lost {
			return false
		}
	}
	return true
}

func positions(sum *follow.Summary) map[droverv1.Stream]follow.Position {
	return map[droverv1.Stream]follow.Position{
		droverv1.Stream_STREAM_STDOUT: sum.Stdout, droverv1.Stream_STREAM_STDERR: sum.Stderr,
	}
}

// endOf finds where the output ends now.
func endOf(ctx context.Context, c *client.Client, id string) (follow.Summary, error) {
	return tail(ctx, follow.Config{Opener: c, Request: &droverv1.StreamOutputRequest{JobId: id}, Sink: &lastLines{}}, 0)
}

// lastLines keeps the last pieces of both streams in the order in which they
// were written, as few as hold the wanted lines.
type lastLines struct {
	want    int
	pieces  []piece
	lines   int                      // line ends in pieces
	dropped map[droverv1.Stream]bool // streams that pieces were dropped of
}

type piece struct {
	stream droverv1.Stream
	at     time.Time
	data   []byte
	lines  int
}

// Write implements follow.Sink.
func (l *lastLines) Write(s droverv1.Stream, at time.Time, data []byte) error {
	if l.want == 0 {
		return nil
	}
	p := piece{s, at, bytes.Clone(data), bytes.Count(data, []byte{'\n'})}
	l.pieces = append(l.pieces, p)
	l.lines += p.lines
	// More line ends than lines are kept: the first ends what is not wanted.
	for l.lines-l.pieces[0].lines > l.want {
		l.lines -= l.pieces[0].lines
		l.dropped[l.pieces[0].stream] = true
		l.pieces = l.pieces[1:]
	}
	return nil
}

// sure tells whether the wanted lines are all there: they begin after the
// beginning of every stream that the window cuts.
func (l *lastLines) sure(sum *follow.Summary) bool {
	if l.lines <= l.want {
		return false
	}
	for stream, p := range positions(sum) {
		if p.First > 0 && !l.dropped[stream] && l.pieces[0].stream != stream {
			return false
		}
	}
	return true
}

// flush writes the wanted lines.
func (l *lastLines) flush(to follow.Sink) error {
	if len(l.pieces) == 0 {
		return nil
	}
	skip := l.lines - l.want
	if !bytes.HasSuffix(l.pieces[len(l.pieces)-1].data, []byte{'\n'}) {
		skip++ // the last line has no end yet
	}
	for _, p := range l.pieces {
		for skip > 0 && len(p.data) > 0 {
			end := indexAfter(p.data, '\n')
			if p.data[end-1] == '\n' {
				skip--
			}
			p.data = p.data[end:]
		}
		if len(p.data) == 0 {
			continue
		}
		if err := to.Write(p.stream, p.at, p.data); err != nil {
			return &follow.SinkError{Err: err}
		}
	}
	return nil
}
