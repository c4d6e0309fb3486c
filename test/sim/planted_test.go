package sim_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// enough is how many seeds the simulation has to find a planted bug.
const enough = "5000"

// planted are bugs that the simulation must find: each is the code of core with
// one text exchanged for another. They are planted at build time, by the
// overlay of the go command, so that the code itself knows nothing of them.
var planted = []struct {
	name     string
	file     string
	old, new string
}{
	{
		"start an attempt that is known", "worker/machine.go",
		"if a := m.attempts[o.Key]; a != nil {\n\t\tm.repeat(a, e)", "if a := m.attempts[o.Key]; a != nil && a.phase == phaseDone {\n\t\tm.repeat(a, e)",
	},
	{"fork before the intent is on disk", "worker/run.go", "m.record(journal.Record{Kind: journal.KindIntent, Key: a.key, Fence: a.fence, Intent: &in})\n\ta.report", "a.report"},
	{
		"drop the tombstone", "worker/stop.go",
		"m.reply(e.Ticket, a.report, nil)\n}\n\nfunc (m *Machine) tombstone", "m.reply(e.Ticket, a.report, nil)\n\tdelete(m.attempts, a.key)\n}\n\nfunc (m *Machine) tombstone",
	},
	{"trust a newer term, whatever its history", "worker/machine.go", "if !e.History.Holds(m.life) {", "if false {"},
	{"skip the fence check", "worker/machine.go", "if e.Term < m.fence.Term {", "if false {"},
	{
		"signal before the stop is on disk", "worker/stop.go",
		"m.record(journal.Record{Kind: journal.KindStop, Key: a.key, Stop: &journal.Stop{Reason: reason, Grace: grace}})\n\tm.report", "m.report",
	},
	{"leave the children that linger", "worker/run.go", "a.phase = phaseStopping\n\t\tm.emitStop(a, 0)\n\t}\n}\n\n// whole tells", "m.finish(a)\n\t}\n}\n\n// whole tells"},
	{"take a failed stop for a proof", "worker/stop.go", "if e.Err != nil {\n\t\t// P9", "if false {\n\t\t// P9"},
	{"LOST without looking for processes", "worker/run.go", "a.phase = phaseStopping\n\t\tm.emitStop(a, 0)\n\t}\n}\n\n// unknown", "m.finish(a)\n\t}\n}\n\n// unknown"},
	{"invent a failure", "worker/run.go", "r.State, r.Reason, r.Message = job.Lost, a.lostReason", "r.State, r.Reason, r.Message = job.Failed, a.lostReason"},
	{"sequences fall back with a restart", "worker/restore.go", "m.epoch = st.Epoch + 1", "m.epoch = 1"},
	{"keep the slot of an ended attempt", "worker/attempt.go", "a.slot = false\n\t\tm.used--", "a.slot = false"},
	{"believe reports of earlier attempts", "scheduler/report.go", "e == nil || e.Attempt != r.Attempt || e.Worker != ev.Worker", "e == nil || e.Worker != ev.Worker"},
	{"send an order again after a reboot", "scheduler/report.go", " && l.hello.BootID == e.BootID:", ":"},
	{"forget who runs what after a restart", "scheduler/machine.go", "m.workers.Occupy(j.Worker, 1)\n", "j.Worker = job.WorkerID{}\n"},
	{
		"run again what is out of reach", "scheduler/partition.go",
		"m.awaitPartition(e)\n\t}\n}", "m.finish(e, job.Lost, \"LEASE\", \"\")\n\t}\n}",
	},
	{"answer a stop before it is on disk", "scheduler/attempt.go", "m.put(e)\n\t\tm.send(e.Worker, Down{Stops: []job.StopOrder{e.stop}})\n\t}\n\tm.reply", "m.send(e.Worker, Down{Stops: []job.StopOrder{e.stop}})\n\t}\n\tm.reply"},
	{"answer a submit before it is on disk", "scheduler/attempt.go", "j := e.Job\n\tm.effect(Effect{Put: &j, New: true, Hash: hash})\n", "j := e.Job\n"},
	{"keep the slot of an ended job", "scheduler/attempt.go", "m.workers.Occupy(e.Worker, -1)\n\tm.dirty = true", "m.dirty = true"},
	{"retry what was stopped", "scheduler/attempt.go", "!asked && retries", "(!asked || true) && retries"},
	{
		"let the plugin forget an exit before it is on disk", "worker/run.go",
		"m.record(journal.Record{Kind: journal.KindExited, Key: a.key, Exit: &x})", "m.emit(AckExit{Key: a.key})",
	},
	{"do not report again after a restart", "worker/restore.go", "m.emit(Publish{Report: a.report, Acked: a.acked})\n\tm.emit(AckExit", "m.emit(Publish{Report: a.report, Acked: true})\n\tm.emit(AckExit"},
	{"count no slot for what runs on after a restart", "worker/restore.go", "a.slot = true\n\tm.used++", "a.slot = true"},
	{"tell a newer scheduler what an older one was refused", "worker/machine.go", " && e.Session >= m.fence.Term", ""},
	{"lose the order of stop and exit", "journal/index.go", "a.StopFirst = a.StopFirst || a.Exit == nil", "a.StopFirst = false"},
	{"give up without waiting for the worker", "scheduler/partition.go", "job.PartitionWait(w.Lease, e.Spec.Grace)", "w.Lease"},
	{"do not wait for the grace of a worker that is cut off", "scheduler/partition.go", "job.PartitionWait(w.Lease, e.Spec.Grace)", "job.PartitionWait(w.Lease, 0)"},
	{"run on without a lease", "worker/lease.go", "m.recordLease()\n\tm.stopUnleased()\n", "m.recordLease()\n"},
	{"drop the sum of an output that was held", "scheduler/stray.go", "*s.of = *s.now", "_ = s"},
	{"give jobs to a worker without a session", "registry/place.go", "case !e.Commanded:", "case false:"},
	{"leave a job with a worker that was not sent its order", "scheduler/command.go", " || e.resent {", " || true {"},
	{"retry where the attempt before was made", "scheduler/attempt.go", "e.triedOn())", "uuid.Nil)"},
	{
		"forget the worker of the attempt before", "scheduler/attempt.go",
		"past.State, past.Reason = s, reason", "past.State, past.Reason, past.Worker = s, reason, uuid.Nil",
	},
	{"keep the attempt before only", "scheduler/attempt.go", "append(slices.Clip(e.Past), past)", "[]job.Attempt{past}"},
	{"drop the sum of an earlier attempt", "scheduler/stray.go", "changed = a.Worker == from", "changed = false && a.Worker == from"},
	{"forget the grace of a stop with a restart", "scheduler/machine.go", "Grace: j.StopGrace, ", ""},
	{"let run what was given up", "scheduler/report.go", "if l.complete {\n\t\tm.stopStrays", "if false {\n\t\tm.stopStrays"},
	{"count no slot for what was given up", "scheduler/stray.go", "{told: l.number}\n\tm.workers.Occupy(w, 1)\n", "{told: l.number}\n"},
	{"retry beside what was given up", "scheduler/stray.go", "if e.strays == 0 || ", "if e.strays >= 0 || "},
	{"use an attempt number twice", "scheduler/attempt.go", "e.Attempt++\n", "e.Attempt = max(e.Attempt, 1)\n"},
}

// TestBugsCanBePlanted: when the code has moved on, each still has its place.
func TestBugsCanBePlanted(t *testing.T) {
	t.Parallel()
	for _, b := range planted {
		overlay(t, t.TempDir(), b.file, b.old, b.new)
	}
}

// TestPlantedBugsAreFound builds the simulation with each bug and runs it.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	if os.Getenv("DROVER_SIM_FIRST") != "" {
		t.Skip("this is the simulation with a planted bug")
	}
	if os.Getenv("DROVER_LONG") == "" {
		t.Skip("each bug is a build: make sim")
	}
	found := regexp.MustCompile(`seed (\d+): .*`)
	for _, b := range planted {
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
			dir := t.TempDir()
			bin := filepath.Join(dir, "sim.test")
			build := exec.Command("go", "test", "-overlay", overlay(t, dir, b.file, b.old, b.new), "-c", "-o", bin, ".")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			cmd := exec.Command(bin, "-test.run", "TestEveryPromiseUnderEveryFault")
			cmd.Env = append(os.Environ(), "DROVER_SIM_FIRST=1", "DROVER_SIM_SEED=", "DROVER_SIM_SEEDS="+enough)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("%s seeds do not find it", enough)
			}
			if m := found.Find(out); m != nil {
				t.Logf("%s", m)
			} else {
				t.Logf("%s", out)
			}
		})
	}
}

// overlay writes the spoiled file and what tells the go command of it.
func overlay(t *testing.T, dir, file, from, to string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "core", filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), from); n != 1 {
		t.Fatalf("%s has the text %d times: plant the bug elsewhere", file, n)
	}
	spoiled := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(spoiled, []byte(strings.Replace(string(data), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{path: spoiled}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
