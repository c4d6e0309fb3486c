package worker

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// BenchmarkJobs takes the worker's own cost of a job, from order to report,
// with a real journal and hands that do nothing.
func BenchmarkJobs(b *testing.B) {
	data := b.TempDir()
	j, st, err := journal.Open(journal.Config{Path: data + "/journal", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld()
	wk, err := New(Config{
		Name: "w1", Data: data, Slots: 256, Journal: j, State: st, Log: slog.New(slog.DiscardHandler),
		Output: worldOutput{w}, Scripts: worldScripts{w}, Groups: &quickGroups{}, Runners: w, Feed: w.feed,
	})
	if err != nil {
		b.Fatal(err)
	}
	var over sync.WaitGroup
	over.Go(func() { _ = wk.Run(b.Context()) })
	<-wk.ready
	if err := wk.identity.set(testWorkerID()); err != nil {
		b.Fatal(err)
	}
	down := make(chan Down)
	done := make(chan int, 1024)
	up := func(f Up) error {
		n := 0
		for _, r := range f.Reports {
			if r.State.Terminal() {
				n++
			}
		}
		done <- n
		return nil
	}
	go wk.Session(b.Context(), SessionHello{Term: 1, WorkerID: testWorkerID()}, down, up)
	b.ReportAllocs()
	before := cpu()
	sent, ended := 0, 0
	for b.Loop() {
		var f Down
		for sent-ended < 256 && len(f.Starts) < 64 {
			sent++
			o := order(1, "run=0s")
			o.Key = job.Key{Job: uuid.UUID{1, byte(sent >> 24), byte(sent >> 16), byte(sent >> 8), byte(sent)}, Attempt: 1}
			f.Starts = append(f.Starts, o)
		}
		if len(f.Starts) > 0 {
			down <- f
		}
		ended += <-done
	}
	for ended < sent {
		ended += <-done
	}
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "jobs/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(sent), "cpu-us/job")
}

// quickGroups are groups that are always empty.
type quickGroups struct{}

func (quickGroups) Check(job.Limits) error                 { return nil }
func (quickGroups) Acquire(job.Limits, int) (Group, error) { return noGroup{}, nil }
func (quickGroups) Reopen(string) (Group, error)           { return noGroup{}, nil }
func (quickGroups) Conditions() []job.Condition            { return nil }
func (quickGroups) Prune() ([]string, error)               { return nil, nil }
func (quickGroups) End(context.Context, []string) error    { return nil }

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkKept takes the memory of an attempt that is done and not forgotten.
func BenchmarkKept(b *testing.B) {
	const n = 20_000
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		m, board := NewMachine(MachineConfig{Slots: 1}), newBoard()
		step := func(ev Event) {
			for _, e := range m.Step(at(1), ev) {
				if p, ok := e.(Publish); ok {
					board.publish(p)
				}
			}
		}
		for i := range n {
			o := order(1, "run=1s")
			o.Job[1], o.Job[2] = byte(i>>8), byte(i)
			step(StartAsked{Order: o, Session: 1})
			step(Prepared{Key: o.Key, Intent: journal.Intent{Spec: o.Spec}})
			step(ProcessStarted{Key: o.Key, Started: journal.Started{PID: 1}})
			step(ProcessExited{Key: o.Key, Exit: journal.Exit{Evidence: job.Wait}})
			step(Settled{Key: o.Key, Finished: &Finished{Key: o.Key}})
			step(Acked{Keys: []job.Key{o.Key}})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/attempt")
		runtime.KeepAlive(m)
		runtime.KeepAlive(board)
	}
}
