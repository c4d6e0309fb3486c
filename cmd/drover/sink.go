package main

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// lanes writes a job's output to the right file descriptors: byte for byte,
// or, on a terminal, with control bytes shown rather than obeyed. It implements follow.Sink.
type lanes struct {
	out, err *lane
}

// lane is where one stream goes.
type lane struct {
	w      io.Writer
	escape *term.Escaper // nil: raw
	stamps bool          // write the time before each line
	held   []byte        // with stamps: a line whose end has not come
	at     time.Time     // of what is held
}

func newLanes(e *env, raw, stamps bool) *lanes {
	return &lanes{newLane(e.stdout, raw, stamps), newLane(e.stderr, raw, stamps)}
}

func newLane(w io.Writer, raw, stamps bool) *lane {
	l := &lane{w: w, stamps: stamps}
	if t, ok := w.(*term.Terminal); ok {
		l.w = t.Raw()
		if !raw {
			l.escape = term.NewEscaper(t.Raw())
			l.w = l.escape
		}
	}
	return l
}

// Write implements follow.Sink.
func (l *lanes) Write(s droverv1.Stream, at time.Time, data []byte) error {
	if s == droverv1.Stream_STREAM_STDERR {
		return l.err.write(at, data)
	}
	return l.out.write(at, data)
}

// close writes what is held back.
func (l *lanes) close() error {
	if err := l.out.close(); err != nil {
		return err
	}
	return l.err.close()
}

func (l *lane) write(at time.Time, data []byte) error {
	if !l.stamps {
		_, err := l.w.Write(data)
		return err
	}
	for len(data) > 0 {
		end := indexAfter(data, '\n')
		if len(l.held) == 0 {
			l.at = at
		}
		l.held = append(l.held, data[:end]...)
		data = data[end:]
		if l.held[len(l.held)-1] != '\n' && len(l.held) < maxHeld {
			return nil
		}
		if err := l.flush(); err != nil {
			return err
		}
	}
	return nil
}

// maxHeld bounds a line that is held back for its time stamp.
const maxHeld = 1 << 20

// indexAfter returns the index after the first b, or len(p).
func indexAfter(p []byte, b byte) int {
	if i := bytes.IndexByte(p, b); i >= 0 {
		return i + 1
	}
	return len(p)
}

func (l *lane) flush() error {
	if len(l.held) == 0 {
		return nil
	}
	line := append([]byte(l.at.UTC().Format("2006-01-02T15:04:05.000000Z")+" "), l.held...)
	l.held = l.held[:0]
	_, err := l.w.Write(line)
	return err
}

func (l *lane) close() error {
	if err := l.flush(); err != nil {
		return err
	}
	if l.escape == nil {
		return nil
	}
	return l.escape.Close()
}

// complain tells what is missing of an output, and whether anything is.
func (e *env) complain(s *follow.Summary) bool {
	for _, m := range s.Missing {
		fmt.Fprintf(e.stderr, "drover: %s\n", term.Line(m.String()))
	}
	return len(s.Missing) > 0
}
