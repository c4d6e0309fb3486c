package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// scoreboard tells people how a run of many jobs goes.
type scoreboard struct {
	*many
	items bulk.Items
	e     *env
	quiet bool
	tty   *term.Terminal // standard error where it is a terminal; else nil
	begin time.Time

	mu    sync.Mutex // guards the fields below and the terminal
	drawn bool       // the last thing on the terminal is the bar
	told  int        // failures that were printed
}

// failuresShown bounds the lines about jobs that failed.
const failuresShown = 20

func (b *scoreboard) every() time.Duration {
	if b.tty != nil {
		return 200 * time.Millisecond
	}
	return 10 * time.Second
}

// clear takes the bar away.
func (b *scoreboard) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wipe()
}

// wipe takes the bar away; b.mu is held.
func (b *scoreboard) wipe() {
	if b.drawn {
		b.tty.EraseLine()
		b.drawn = false
	}
}

func (b *scoreboard) say(format string, args ...any) {
	if b.quiet {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wipe()
	fmt.Fprintf(b.e.stderr, "drover: %s\n", term.Line(fmt.Sprintf(format, args...)))
}

func (b *scoreboard) tick(c bulk.Counts) {
	line := progress(c, time.Since(b.begin))
	switch {
	case b.quiet:
	case b.tty != nil:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.wipe()
		fmt.Fprint(b.e.stderr, bar(c, line, b.tty.Columns()))
		b.drawn = true
	default:
		b.say("%s", line)
	}
}

// failed says which job failed and why; of very many the first.
func (b *scoreboard) failed(i int, id string, e *droverv1.JobEnd, refused *droverv1.StartJobsError) {
	switch b.told++; {
	case b.told == failuresShown+1:
		b.say("further failures are not shown; \"drover jobs --state failed\" lists them")
	case b.told > failuresShown:
	case refused != nil:
		b.say("%s was refused: %s", b.label(b.items, i), refused.GetMessage())
	case e.GetState() == droverv1.JobState_JOB_STATE_UNSPECIFIED:
		b.say("%s (%s) was removed", b.label(b.items, i), render.ShortID(id))
	default:
		why := e.GetMessage()
		if why == "" {
			why = e.GetReason()
		}
		b.say("%s (%s) %s: %s", b.label(b.items, i), render.ShortID(id), verbOf(e.GetState()), why)
	}
}

// progress is how far it has come, in one line.
func progress(c bulk.Counts, since time.Duration) string {
	parts := []string{fmt.Sprintf("%d of %d ended", c.Ended(), c.Total)}
	if n := c.Failed + c.Refused; n > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", n))
	}
	rate := float64(c.Ended()) / max(since.Seconds(), 0.001)
	switch {
	case c.Stopping:
		parts = append(parts, fmt.Sprintf("stopping %d", c.Running))
	case c.Ended() > 0:
		left := time.Duration(float64(c.Total-c.Ended()) / rate * float64(time.Second))
		parts = append(parts, fmt.Sprintf("%.*f/s", precision(rate), rate), render.Duration(left.Round(time.Second))+" left")
	}
	return strings.Join(parts, ", ")
}

// precision is how many digits after the point a rate is worth.
func precision(rate float64) int {
	if rate < 10 {
		return 1
	}
	return 0
}

// barWidth is how wide the bar itself is, in characters.
const barWidth = 20

// bar is a line for a terminal that is wide enough; width 0 is not known.
func bar(c bulk.Counts, line string, width int) string {
	full := barWidth * c.Ended() / max(c.Total, 1)
	all := "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "] " + line
	switch {
	case width == 0 || len(all) < width:
		return all
	case len(line) < width:
		return line
	default:
		return line[:max(width-1, 0)]
	}
}

// summary is the end of a run in one line.
func summary(c bulk.Counts, took time.Duration) string {
	jobs := "jobs"
	if c.Total == 1 {
		jobs = "job"
	}
	parts := []string{fmt.Sprintf("%d succeeded", c.Succeeded)}
	for _, p := range []struct {
		n    int
		what string
	}{{c.Failed, "failed"}, {c.Refused, "were refused"}, {c.Stopped, "stopped"}, {c.Left(), "not started"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return fmt.Sprintf("%d %s in %s: %s", c.Total, jobs, render.Duration(took), strings.Join(parts, ", "))
}
