package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// everyByte is all 256 bytes: NUL, control bytes, what is no UTF-8.
func everyByte() string {
	var b strings.Builder
	for i := range 256 {
		b.WriteByte(byte(i))
	}
	return b.String()
}

// lines is a text of n numbered lines.
func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d\n", i+1)
	}
	return b.String()
}

// scenarios are what the scripts of the fake do.
var scenarios = map[string]func(*fakeJob){
	"hello.sh": func(j *fakeJob) {
		j.write(0, "hello "+strings.Join(j.request.GetArgs(), " ")+"\n")
		j.exit(0)
	},
	"local.sh": func(j *fakeJob) {
		j.write(0, fmt.Sprintf("%s %x %s\n", j.request.GetPath(), sha256.Sum256(j.request.GetUpload()), strings.Join(j.request.GetArgs(), " ")))
		j.exit(0)
	},
	"uname": func(j *fakeJob) {
		j.write(0, strings.Join(j.request.GetArgs(), "|"))
		j.exit(0)
	},
	"exit.sh": func(j *fakeJob) {
		var code int32
		_, _ = fmt.Sscan(j.request.GetArgs()[0], &code)
		j.exit(code)
	},
	"both.sh": func(j *fakeJob) {
		j.write(0, "to stdout\n")
		j.write(1, "to stderr\n")
		j.exit(3)
	},
	"bytes.sh": func(j *fakeJob) {
		j.write(0, everyByte())
		j.write(1, everyByte()+everyByte())
		j.exit(0)
	},
	"stdin.sh": func(j *fakeJob) {
		j.write(0, string(j.request.GetStdin()))
		j.exit(0)
	},
	"killed.sh": func(j *fakeJob) {
		j.f.mu.Lock()
		defer j.f.mu.Unlock()
		j.job.Signal = "SIGSEGV"
		j.end(droverv1.JobState_JOB_STATE_FAILED, "SIGNAL")
	},
	"timeout.sh": func(j *fakeJob) {
		j.fails(droverv1.JobState_JOB_STATE_FAILED, "TIMEOUT", "it ran longer than 1s")
	},
	"policy.sh": func(j *fakeJob) {
		j.fails(droverv1.JobState_JOB_STATE_REJECTED, "POLICY", "the worker's policy does not allow it")
	},
	"gone.sh": func(j *fakeJob) {
		j.fails(droverv1.JobState_JOB_STATE_REJECTED, "SCRIPT_NOT_FOUND", "the script is gone")
	},
	"spawn.sh": func(j *fakeJob) {
		j.fails(droverv1.JobState_JOB_STATE_FAILED, "SPAWN", "NOT_FOUND: no such interpreter")
	},
	"lost.sh": func(j *fakeJob) {
		j.fails(droverv1.JobState_JOB_STATE_LOST, "REBOOT", "the host was rebooted")
	},
	// wait.sh ends at the first stop, at once when it is to be killed.
	"wait.sh": func(j *fakeJob) {
		j.write(0, "ready\n")
		signal := "SIGTERM"
		if g := j.awaitStops(1); g != nil && g.AsDuration() == 0 {
			signal = "SIGKILL"
		}
		j.stopped(signal)
	},
	// stubborn.sh has to be killed.
	"stubborn.sh": func(j *fakeJob) {
		j.write(0, "ready\n")
		for n := 1; !j.over(); n++ {
			if g := j.awaitStops(n); g != nil && g.AsDuration() == 0 {
				j.stopped("SIGKILL")
			}
		}
	},
	"forever.sh": func(j *fakeJob) { j.write(0, "ready\n") },
	// queued.sh never gets a worker.
	"queued.sh": func(j *fakeJob) {
		j.f.mu.Lock()
		j.job.State, j.job.Reason, j.job.Message = droverv1.JobState_JOB_STATE_QUEUED, "NO_SLOT", "every worker that fits is full"
		j.job.WorkerId, j.job.WorkerName, j.job.StartTime, j.job.Attempt, j.job.Pid = "", "", nil, 1, 0
		j.f.mu.Unlock()
		j.awaitStops(1)
		j.f.mu.Lock()
		defer j.f.mu.Unlock()
		j.job.Attempt = 1
		j.end(droverv1.JobState_JOB_STATE_STOPPED, "USER")
	},
	// broken.sh is read over connections that break every few bytes.
	"broken.sh": func(j *fakeJob) {
		j.f.mu.Lock()
		j.breaks = 997
		j.f.mu.Unlock()
		j.write(0, lines(500))
		j.write(1, everyByte())
		j.exit(0)
	},
	"gap.sh": func(j *fakeJob) {
		j.write(0, lines(100))
		j.f.mu.Lock()
		j.out[1][0].gap = 70
		j.f.mu.Unlock()
		j.exit(0)
	},
	"tampered.sh": func(j *fakeJob) {
		j.f.mu.Lock()
		j.out[1][0].sum = strings.Repeat("0", 64)
		j.f.mu.Unlock()
		j.write(0, "x")
		j.exit(0)
	},
	// flaky.sh succeeds with the second attempt.
	"flaky.sh": func(j *fakeJob) {
		j.write(0, "first\n")
		j.f.mu.Lock()
		j.close()
		j.job.Attempt = 2
		j.out[2] = &[2]fakeStream{}
		j.f.changed.Broadcast()
		j.f.mu.Unlock()
		j.write(0, "second\n")
		j.exit(0)
	},
	// flood.sh writes until it is stopped.
	"flood.sh": func(j *fakeJob) {
		j.write(0, strings.Repeat("0123456789abcdef", 1<<14))
		j.awaitStops(1)
		j.stopped("SIGTERM")
	},
	"lines.sh": func(j *fakeJob) {
		j.write(0, lines(20_000))
		j.write(1, "one\ntwo\nthree")
		j.exit(0)
	},
	"colours.sh": func(j *fakeJob) {
		j.write(0, "\x1b[31mred\x1b[0m\r\n")
		j.exit(0)
	},
}

// StreamOutput implements the service.
func (f *fake) StreamOutput(r *droverv1.StreamOutputRequest, stream grpc.ServerStreamingServer[droverv1.StreamOutputResponse]) error {
	if err := f.count("StreamOutput"); err != nil {
		return err
	}
	ctx := stream.Context()
	wake := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changed.Broadcast()
	})
	defer wake()
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find("read output", r.GetJobId())
	if err != nil {
		return err
	}
	j.readers++
	f.changed.Broadcast()
	attempt := r.GetAttempt()
	if attempt == 0 {
		attempt = j.job.GetAttempt()
	}
	read := &fakeRead{f: f, j: j, out: j.out[attempt], stream: stream, request: r, next: [2]uint64{r.GetStdoutOffset(), r.GetStderrOffset()}}
	if read.out == nil {
		return nil
	}
	if r.TailBytes != nil {
		for i := range read.next {
			read.next[i] = uint64(max(0, len(read.out[i].data)-int(r.GetTailBytes())))
		}
	}
	return read.run(ctx)
}

// fakeRead is one reader of one attempt.
type fakeRead struct {
	f       *fake
	j       *fakeJob
	out     *[2]fakeStream
	stream  grpc.ServerStreamingServer[droverv1.StreamOutputResponse]
	request *droverv1.StreamOutputRequest
	next    [2]uint64
	ended   [2]bool
	sent    int
}

func (r *fakeRead) wants(i int) bool {
	s := r.request.GetStream()
	return s == droverv1.Stream_STREAM_UNSPECIFIED || int(s) == i+1
}

// run is called with the lock of the fake.
func (r *fakeRead) run(ctx context.Context) error {
	for {
		moved := false
		for i := range r.out {
			if !r.wants(i) || r.ended[i] {
				r.ended[i] = true
				continue
			}
			m, err := r.one(i)
			if err != nil {
				return err
			}
			moved = moved || m
		}
		if r.ended[0] && r.ended[1] || !moved && !r.request.GetFollow() {
			return nil
		}
		if !moved {
			r.f.changed.Wait()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// one sends the next chunk of a stream.
func (r *fakeRead) one(i int) (moved bool, err error) {
	s, c := &r.out[i], &droverv1.OutputChunk{Stream: droverv1.Stream(i + 1), Offset: r.next[i], Time: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	size := uint64(len(s.data))
	switch {
	case r.next[i] < s.gap:
		c.Kind = &droverv1.OutputChunk_Gap{Gap: &droverv1.OutputGap{To: s.gap, Reason: "RETENTION"}}
		r.next[i] = s.gap
	case r.next[i] < size:
		end := min(size, r.next[i]+64<<10)
		if r.j.breaks > 0 {
			if r.sent >= r.j.breaks {
				return false, status.Error(codes.Unavailable, "the connection broke")
			}
			end = min(end, r.next[i]+100)
		}
		c.Kind = &droverv1.OutputChunk_Data{Data: s.data[r.next[i]:end]}
		r.sent += int(end - r.next[i])
		r.next[i] = end
	case s.ended:
		c.Kind = &droverv1.OutputChunk_End{End: &droverv1.OutputEnd{Size: size, Sha256: s.sum}}
		r.ended[i] = true
	default:
		return false, nil
	}
	r.f.mu.Unlock()
	defer r.f.mu.Lock()
	return true, r.stream.Send(&droverv1.StreamOutputResponse{Chunk: c})
}
