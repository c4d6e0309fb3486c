package chaos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/cmd/drover/internal/follow"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

const scriptName = "chaos.sh"

// script writes when it begins and how it ends into a file of its own, and lines
// that can be foretold to both streams. It never forks to wait.
const script = `#!/bin/bash
# chaos.sh TRUTH NONCE LINES PAUSE CODE CHILD
echo "begin $$" >>"$1"
exec 3<> <(:)
if [ "$6" = child ]; then setsid sleep 300 & fi
for ((i = 0; i < $3; i++)); do
  printf '%s %06d out\n' "$2" "$i"
  printf '%s %06d err\n' "$2" "$i" >&2
  if [ "$4" != 0 ]; then read -r -t "$4" -u 3; fi
done
echo "end $5" >>"$1"
exit "$5"
`

// task is one job: what it is asked to do.
type task struct {
	nonce string
	truth string
	lines int
	pause float64
	code  int
	child bool
	stop  time.Duration // after so long; 0: never
}

func (r *run) draw(random *rand.Rand) task {
	t := task{nonce: strconv.FormatUint(random.Uint64(), 36), lines: 1 + random.IntN(30), pause: 0.01 + 0.1*random.Float64()}
	t.truth = filepath.Join(r.dir, t.nonce)
	switch random.IntN(10) {
	case 0: // much at once
		t.lines, t.pause = 5000+random.IntN(20000), 0
	case 1, 2: // long
		t.lines, t.pause = 20+random.IntN(80), 0.1
	}
	if random.IntN(3) == 0 {
		t.code = 1 + random.IntN(200)
	}
	t.child = random.IntN(8) == 0
	if random.IntN(6) == 0 {
		t.stop = time.Duration(random.Int64N(int64(3 * time.Second)))
	}
	return t
}

func (t *task) request() *droverv1.StartJobRequest {
	child := "none"
	if t.child {
		child = "child"
	}
	return &droverv1.StartJobRequest{
		Path: scriptName, Command: "bash", RequestId: uuid.NewString(), Linger: durationpb.New(300 * time.Millisecond),
		// A worker that has just come back may not have told its scripts yet.
		QueueTimeout: durationpb.New(patience), Grace: durationpb.New(200 * time.Millisecond),
		Args: []string{t.truth, t.nonce, strconv.Itoa(t.lines), strconv.FormatFloat(t.pause, 'f', 3, 64), strconv.Itoa(t.code), child},
	}
}

// expected is everything that the job says on one stream.
func (t *task) expected(stream string) []byte {
	var b bytes.Buffer
	for i := range t.lines {
		fmt.Fprintf(&b, "%s %06d %s\n", t.nonce, i, stream)
	}
	return b.Bytes()
}

// lane runs one job after the other until the attack is over.
func (r *run) lane(ctx, attack context.Context, random *rand.Rand) error {
	for attack.Err() == nil && ctx.Err() == nil {
		t := r.draw(random)
		if err := r.job(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// job submits one job, waits for its end and compares it with the truth.
func (r *run) job(ctx context.Context, t task) error {
	q := t.request()
	var id string
	if err := until(ctx, "submit a job", func() (bool, error) {
		// The same request id every time: however often it is asked, it is one job.
		got, err := r.api.StartJob(ctx, q)
		if id != "" && err == nil && got.GetJobId() != id {
			r.broke(func(*Ledger) {}, "one request id made the jobs %s and %s", id, got.GetJobId())
		}
		if err == nil {
			id = got.GetJobId()
		}
		return err == nil, err
	}); err != nil {
		return err
	}
	r.count(func(l *Ledger) { l.Submitted++; r.under++ })
	defer r.count(func(*Ledger) { r.under-- })
	if t.stop > 0 {
		pause(ctx, t.stop)
		if err := until(ctx, "stop a job", func() (bool, error) {
			_, err := r.api.StopJob(ctx, &droverv1.StopJobRequest{JobId: id})
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	j, err := r.end(ctx, id)
	if err != nil {
		return err
	}
	if j == nil {
		r.broke(func(l *Ledger) { l.Live++ }, "job %s does not end", id)
		return nil
	}
	r.settle(t, j)
	return r.output(ctx, t, j)
}

// end waits for the end of a job; nil when it does not come.
func (r *run) end(ctx context.Context, id string) (j *droverv1.Job, err error) {
	for end := time.Now().Add(2 * patience); time.Now().Before(end); {
		wait, cancel := context.WithTimeout(ctx, patience)
		got, err := r.api.GetJob(wait, &droverv1.GetJobRequest{JobId: id, Wait: true})
		cancel()
		if err == nil {
			return got.GetJob(), nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		pause(ctx, 20*time.Millisecond)
	}
	return nil, nil //nolint:nilnil // a job that does not end is no error of this call
}

// settle compares the end of a job with what it wrote down itself.
func (r *run) settle(t task, j *droverv1.Job) {
	begins, ends := t.said()
	id, state := j.GetJobId(), strings.TrimPrefix(j.GetState().String(), "JOB_STATE_")
	if begins > 1 {
		r.broke(func(l *Ledger) { l.DoubleStarts++ }, "job %s began %d times", id, begins)
	}
	truth := strconv.Itoa(t.code)
	ran := begins == 1 && len(ends) == 1 && ends[0] == truth
	code := "none"
	if j.ExitCode != nil {
		code = strconv.Itoa(int(j.GetExitCode()))
	}
	switch {
	case state == "SUCCEEDED" && ran && t.code == 0 && code == "0":
		r.count(func(l *Ledger) { l.Finished++ })
	case state == "FAILED" && ran && t.code != 0 && code == truth:
		r.count(func(l *Ledger) { l.Failed++ })
	case state == "STOPPED" && t.stop > 0:
		r.count(func(l *Ledger) { l.Stopped++ })
	case state == "LOST":
		r.broke(func(l *Ledger) { l.Lost++ }, "job %s is LOST: %s", id, j.GetMessage())
	default:
		r.broke(func(l *Ledger) { l.FalseCodes++ }, "job %s is %s (%s: %s) with code %s; it began %d times and said it ended with %v, its code is %d",
			id, state, j.GetReason(), j.GetMessage(), code, begins, ends, t.code)
	}
}

// said reads the truth file.
func (t *task) said() (begins int, ends []string) {
	data, err := os.ReadFile(t.truth)
	if err != nil {
		return 0, nil // it never began
	}
	for line := range strings.Lines(string(data)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "begin":
			begins++
		case "end":
			ends = append(ends, rest)
		}
	}
	return begins, ends
}

// sink keeps the streams apart.
type sink struct{ out, err bytes.Buffer }

// Write implements follow.Sink.
func (s *sink) Write(stream droverv1.Stream, _ time.Time, data []byte) error {
	if stream == droverv1.Stream_STREAM_STDERR {
		s.err.Write(data)
	} else {
		s.out.Write(data)
	}
	return nil
}

// output reads both streams and compares every byte. A job that was stopped has
// said the beginning of what it would have.
func (r *run) output(ctx context.Context, t task, j *droverv1.Job) error {
	begins, _ := t.said()
	if begins == 0 {
		return nil
	}
	var (
		s   sink
		sum follow.Summary
	)
	if err := until(ctx, "read the output of "+j.GetJobId(), func() (bool, error) {
		s = sink{}
		var err error
		sum, err = follow.Run(ctx, follow.Config{
			Opener: r.api, Sink: &s, Request: &droverv1.StreamOutputRequest{JobId: j.GetJobId()}, Patience: patience, Eager: true,
			Finished: func(context.Context) (bool, error) { return true, nil },
		})
		return err == nil, err
	}); err != nil {
		return err
	}
	for _, m := range sum.Missing {
		r.broke(func(l *Ledger) { l.BytesMissing += m.To - m.From }, "job %s, %s", j.GetJobId(), m)
	}
	whole := j.GetState() != droverv1.JobState_JOB_STATE_STOPPED && j.GetState() != droverv1.JobState_JOB_STATE_LOST
	r.compare(j.GetJobId(), "stdout", s.out.Bytes(), t.expected("out"), whole)
	r.compare(j.GetJobId(), "stderr", s.err.Bytes(), t.expected("err"), whole)
	r.sum(j.GetJobId(), "stdout", s.out.Bytes(), sum.Stdout.End)
	r.sum(j.GetJobId(), "stderr", s.err.Bytes(), sum.Stderr.End)
	return nil
}

// sum compares what was read with what the worker says that it is.
func (r *run) sum(id, stream string, got []byte, end *droverv1.OutputEnd) {
	sum := sha256.Sum256(got)
	switch said := end.GetSha256(); {
	case end == nil:
		r.broke(func(*Ledger) {}, "job %s, %s: no end came", id, stream)
	case end.GetSize() != uint64(len(got)) || said != hex.EncodeToString(sum[:]):
		r.broke(func(*Ledger) {}, "job %s, %s: %d bytes with another sum than the end says: %d bytes, %s", id, stream, len(got), end.GetSize(), said)
	}
}

func (r *run) compare(id, stream string, got, want []byte, whole bool) {
	r.count(func(l *Ledger) { l.BytesRead += uint64(len(got)) })
	same := 0
	for same < min(len(got), len(want)) && got[same] == want[same] {
		same++
	}
	switch {
	case same < len(got):
		// For whoever looks into it: what came, to be compared with a second read.
		_ = os.WriteFile(filepath.Join(r.dir, id+"."+stream), got, 0o600)
		r.broke(func(l *Ledger) { l.BytesChanged += uint64(len(got) - same) }, "job %s, %s: other bytes from %d on", id, stream, same)
	case whole && same < len(want):
		r.broke(func(l *Ledger) { l.BytesMissing += uint64(len(want) - same) }, "job %s, %s: %d bytes of %d", id, stream, same, len(want))
	}
}

// leftOver looks for processes that still know the folder of the truth.
func (r *run) leftOver() error {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return fmt.Errorf("look for processes that are left: %w", err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil {
			continue // it ended meanwhile
		}
		if strings.Contains(string(data), r.dir) {
			r.broke(func(l *Ledger) { l.Processes++ }, "%s is left: %s", filepath.Dir(p), strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return nil
}
