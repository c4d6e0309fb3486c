package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/worker"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// The tests of this file walk over all that makes a list, a frame or an event, each
// with items of the largest size that is taken, or that an older version took.

func sized(t *testing.T, what string, m proto.Message) {
	t.Helper()
	if n := proto.Size(m); n > MaxMessage {
		t.Errorf("%s has %d bytes, a message at most %d", what, n, MaxMessage)
	}
}

func pairs(n, size int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprintf("%0*d", size, i)] = strings.Repeat("v", size)
	}
	return out
}

// largest is a spec with all that a request may hold.
func largest() job.Spec {
	s := job.Spec{
		Worker: strings.Repeat("w", job.MaxName), Path: strings.Repeat("p", job.MaxPath), Command: strings.Repeat("c", job.MaxPath),
		Workdir: strings.Repeat("d", job.MaxPath), User: strings.Repeat("u", job.MaxName), Name: strings.Repeat("n", 128),
		Labels: pairs(64, 128), Env: pairs(4096, 64), Retry: job.Retry{Max: 1, ExitCodes: make([]int32, 256)},
		Stdin: make([]byte, job.MaxStdin), Upload: make([]byte, job.MaxUpload), Secrets: map[string][]byte{},
	}
	for range 4096 {
		s.Args = append(s.Args, strings.Repeat("a", 110))
	}
	for i := range job.MaxSecrets {
		s.Secrets[fmt.Sprintf("%0255d", i)] = make([]byte, job.MaxSecretBytes/job.MaxSecrets-255)
	}
	return s
}

// older is a spec as it was taken before requests had bounds.
func older() job.Spec {
	s := job.Spec{
		Command: strings.Repeat("c", 1<<20), Workdir: "/" + strings.Repeat("d", 1<<20), User: strings.Repeat("u", 1<<20),
		Retry: job.Retry{Max: 1, ExitCodes: make([]int32, 500_000)}, Secrets: map[string][]byte{},
	}
	for i := range 100_000 {
		s.Secrets[fmt.Sprintf("SECRET_%012d", i)] = nil
	}
	return s
}

func longReport() job.Report {
	long := strings.Repeat("m", 1<<16)
	r := job.Report{Message: long, Reason: long, Signal: long, Runner: long, RunnerVersion: long, ScriptSHA256: long, StopProof: &job.StopProof{Method: long}}
	r.Stdout.SHA256, r.Stderr.SHA256 = long, long
	r.Bound()
	return r
}

func largestWorker() registry.Worker {
	long := strings.Repeat("x", 1<<16)
	runner := job.RunnerInfo{Name: long, Version: long, SHA256: long, State: long, Message: long}
	for range 1000 {
		runner.Commands = append(runner.Commands, "command")
	}
	runners, conditions := make([]job.RunnerInfo, 100), make([]job.Condition, 100)
	for i := range runners {
		runners[i], conditions[i] = runner, job.Condition{Type: long, Message: long}
	}
	w := registry.Worker{
		Name: strings.Repeat("w", job.MaxName), Address: strings.Repeat("a", job.MaxName), Version: strings.Repeat("v", job.MaxName),
		Labels: pairs(64, 128), Runners: job.BoundRunners(runners), Conditions: job.BoundConditions(conditions),
		Trouble: job.Condition{Type: "LINK_BREAKS", Message: strings.Repeat("m", job.MaxMessage)},
	}
	for range job.MaxCommands {
		w.Commands = append(w.Commands, strings.Repeat("c", job.MaxCommandsBytes/job.MaxCommands))
	}
	return w
}

// fill puts the same item on a page until it is full.
func fill[M proto.Message](item M) []M {
	var p page[M]
	for range 1000 {
		if !p.add(item) {
			break
		}
	}
	return p.items
}

func TestP16_Lists_MaximalItems_EveryPageFitsIntoAMessage(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]job.Spec{"the largest": largest(), "an older one": older()} {
		spec.TakeInput()
		j := job.Job{Spec: spec, Message: strings.Repeat("m", 1<<20), Result: longReport()}
		short := summaryToProto(&j)
		if n := proto.Size(short); n > 64<<10 || !short.GetTruncated() {
			t.Errorf("%s: the summary has %d bytes, truncated: %v", name, n, short.GetTruncated())
		}
		jobs := fill(short)
		if len(jobs) < 60 {
			t.Errorf("%s: a page of %d jobs", name, len(jobs))
		}
		sized(t, name+", a list", &droverv1.ListJobsResponse{Jobs: jobs})
		sized(t, name+", alone", &droverv1.GetJobResponse{Job: wholeToProto(&j)})
		sized(t, name+", an event", &droverv1.WatchEventsResponse{Kind: &droverv1.WatchEventsResponse_Job{Job: summaryToProto(&j)}})
	}
	whole := job.Job{Spec: largest()}
	whole.Spec.TakeInput()
	if p := wholeToProto(&whole); p.GetTruncated() || len(p.GetArgs()) != 4096 || len(p.GetSpec().GetEnv()) != 4096 {
		t.Errorf("GetJob leaves out something of the largest job: truncated %v", p.GetTruncated())
	}
	small := job.Job{Spec: job.Spec{Command: "x", Args: []string{"a"}, Env: map[string]string{"A": "b"}, Secrets: map[string][]byte{"K": nil}}}
	if p := summaryToProto(&small); p.GetTruncated() || len(p.GetArgs()) != 1 || len(p.GetSpec().GetEnv()) != 1 || len(p.GetSpec().GetSecrets()) != 1 {
		t.Errorf("the summary of a small job is not whole: %v", p)
	}
	w := largestWorker()
	sized(t, "workers", &droverv1.ListWorkersResponse{Workers: fill(workerToProto(&w))})
	sized(t, "an event of a worker", &droverv1.WatchEventsResponse{Kind: &droverv1.WatchEventsResponse_Worker{Worker: workerToProto(&w)}})
	script := scriptToProto(&job.ScriptInfo{Path: strings.Repeat("p", job.MaxPath), Folder: strings.Repeat("f", job.MaxName), SHA256: strings.Repeat("0", 64)})
	for range 2_000 {
		script.WorkerIds = append(script.WorkerIds, job.WorkerID{}.String())
	}
	sized(t, "scripts", &droverv1.ListScriptsResponse{Scripts: fill(script)})
}

func TestP16_Answers_MaximalTexts_FitIntoAMessageAndIntoHeaders(t *testing.T) {
	t.Parallel()
	long := errs.Field(strings.Repeat("o", 1<<16), strings.Repeat("f", 1<<16), "TOO_LONG", "%s", strings.Repeat("é", 1<<16)).WithHint("%s", strings.Repeat("h", 1<<16))
	results := make([]*droverv1.StartJobsResult, scheduler.MaxSubmits)
	answer := answerToProto(&scheduler.Answer{Err: long})
	for i := range results {
		results[i] = answer
	}
	sized(t, "answers to many jobs", &droverv1.StartJobsResponse{Results: results})
	for _, err := range []error{long, errors.New(strings.Repeat("x", 1<<20)), errs.E("op", errs.Exhausted, "R", long)} {
		st, _ := status.FromError(ToStatus(err))
		if n := proto.Size(st.Proto()); n > 16<<10 || !utf8.ValidString(st.Message()) {
			t.Errorf("a status of %d bytes", n)
		}
	}
	ends := make([]scheduler.End, 5_000)
	for i := range ends {
		ends[i] = scheduler.End{Job: &job.Job{Message: strings.Repeat("m", job.MaxMessage), WorkerName: strings.Repeat("w", job.MaxName)}}
	}
	n := 0
	for part := range frames(ends, endToProto) {
		sized(t, "ends", &droverv1.WaitJobsResponse{Ends: part})
		n += len(part)
	}
	if n != len(ends) {
		t.Errorf("%d ends of %d were sent", n, len(ends))
	}
}

func TestP16_Orders_MaximalJobs_EveryFrameFitsAndNoneIsLost(t *testing.T) {
	t.Parallel()
	var d scheduler.Down
	for i := range 10 {
		d.Starts = append(d.Starts, job.StartOrder{Key: job.Key{Job: job.ID{byte(i)}, Attempt: 1}, Spec: largest()})
	}
	huge := job.Spec{Stdin: make([]byte, MaxMessage)}
	d.Starts = append(d.Starts, job.StartOrder{Key: job.Key{Job: job.ID{99}, Attempt: 1}, Spec: huge})
	for i := range 40_000 {
		key := job.Key{Job: job.ID{1, byte(i), byte(i >> 8), byte(i >> 16)}, Attempt: 1 << 30}
		d.Acks, d.Forgets = append(d.Acks, key), append(d.Forgets, key)
		d.Stops = append(d.Stops, job.StopOrder{Key: key, Reason: "USER"})
	}
	starts, stops, acks, forgets := 0, 0, 0, 0
	tooLarge, err := sendDown(&d, func(f *droverv1.SessionRequest) error {
		sized(t, "a frame of orders", f)
		starts, stops, acks, forgets = starts+len(f.GetStarts()), stops+len(f.GetStops()), acks+len(f.GetAcks()), forgets+len(f.GetForgets())
		return nil
	})
	if err != nil || len(tooLarge) != 1 || tooLarge[0].Job != (job.ID{99}) {
		t.Errorf("left out: %v, %v", tooLarge, err)
	}
	if starts != 10 || stops != 40_000 || acks != 40_000 || forgets != 40_000 {
		t.Errorf("%d starts, %d stops, %d acks, %d forgets arrived", starts, stops, acks, forgets)
	}
	broken := errors.New("broken")
	if _, err := sendDown(&d, func(*droverv1.SessionRequest) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a break is %v", err)
	}
}

// TestP16_News_MaximalItems_EveryFrameFits: a worker with 100,000 scripts gets its
// session; a scheduler of an older version gets what one frame has room for.
func TestP16_News_MaximalItems_EveryFrameFits(t *testing.T) {
	t.Parallel()
	w := largestWorker()
	up := worker.Up{Hello: &worker.Hello{Complete: true}, Runners: w.Runners, Scripts: &job.ScriptIndex{Generation: 7}}
	report := longReport()
	for range 512 { // reportsPerFrame of core/worker
		up.Reports = append(up.Reports, report)
	}
	for i := range 100_000 {
		up.Scripts.Scripts = append(up.Scripts.Scripts, job.ScriptInfo{
			Path: fmt.Sprintf("some/folder/of/scripts/%06d.sh", i), Folder: "scripts", SHA256: strings.Repeat("0", 64), Size: 1 << 20, ModTime: time.Unix(1_800_000_000, 5).UTC(),
		})
	}
	for _, parts := range []bool{true, false} {
		var index indexParts
		var got *job.ScriptIndex
		sent, reports := 0, 0
		err := sendUp(&up, parts, func(f *droverv1.SessionResponse) error {
			sized(t, "a frame of news", f)
			if sent == 0 && !f.GetHello().GetComplete() {
				t.Error("the first frame has no hello")
			}
			sent++
			reports += len(f.GetReports())
			x, err := index.add(f.GetScripts())
			if x != nil {
				got = x
			}
			return err
		})
		if err != nil || reports != 512 || got == nil {
			t.Fatalf("parts %v: %v, %d reports, index %v", parts, err, reports, got != nil)
		}
		if parts {
			if got.Generation != 7 || !slices.Equal(up.Scripts.Scripts, got.Scripts) {
				t.Error("another index arrives")
			}
		} else if n := len(got.Scripts); n < 10_000 {
			t.Errorf("an older scheduler gets %d scripts", n)
		}
	}
}

// TestAnIndexWithAMissingPartIsRefused: half an index must not pass for a whole one.
func TestAnIndexWithAMissingPartIsRefused(t *testing.T) {
	t.Parallel()
	part := func(generation uint64, part uint32, more bool) *droverv1.ScriptIndex {
		return &droverv1.ScriptIndex{Generation: generation, Part: part, More: more, Scripts: []*droverv1.Script{{Path: fmt.Sprint(part)}}}
	}
	for name, parts := range map[string][]*droverv1.ScriptIndex{
		"no first one":       {part(1, 1, false)},
		"one left out":       {part(1, 0, true), part(1, 2, false)},
		"another generation": {part(1, 0, true), part(2, 1, false)},
	} {
		var x indexParts
		var err error
		for _, p := range parts {
			if _, e := x.add(p); e != nil {
				err = e
			}
		}
		if errs.ReasonOf(err) != "INDEX_PART" {
			t.Errorf("%s: %v", name, err)
		}
	}
	var x indexParts
	for _, p := range []*droverv1.ScriptIndex{part(1, 0, true), part(2, 0, true), part(2, 1, false)} {
		got, err := x.add(p)
		if err != nil || (got != nil) == p.GetMore() || got != nil && len(got.Scripts) != 2 {
			t.Errorf("an index that begins anew: %+v, %v", got, err)
		}
	}
	long := part(1, 0, false)
	long.Scripts[0].Path = strings.Repeat("p", job.MaxPath+1)
	if got, err := x.add(long); err != nil || len(got.Scripts) != 0 {
		t.Errorf("a path that no file has: %+v, %v", got, err)
	}
}

// TestP21_NewsOfAWorkerBeyondTheLimits_EndItsSession: with an error that names the limit.
func TestP21_NewsOfAWorkerBeyondTheLimits_EndItsSession(t *testing.T) {
	t.Parallel()
	var x indexParts
	path := strings.Repeat("p", job.MaxPath)
	part := &droverv1.ScriptIndex{More: true, Scripts: make([]*droverv1.Script, 1000)}
	for i := range part.GetScripts() {
		part.Scripts[i] = &droverv1.Script{Path: path}
	}
	err := error(nil)
	for part.Part = 0; err == nil && part.GetPart() < 100; part.Part++ {
		_, err = x.add(part)
	}
	if errs.ReasonOf(err) != "TOO_LARGE" || !strings.Contains(err.Error(), "64 MiB") || x.bytes > job.MaxScriptsBytes+job.MaxPath {
		t.Errorf("a list of %d bytes: %v", x.bytes, err)
	}
	_, err = upFromProto(&droverv1.SessionResponse{Reports: make([]*droverv1.AttemptReport, maxReports+1)})
	if errs.ReasonOf(err) != "TOO_MANY" || !strings.Contains(err.Error(), "8192") {
		t.Errorf("a frame of many reports: %v", err)
	}
	if up, err := upFromProto(&droverv1.SessionResponse{Hello: &droverv1.WorkerHello{BootId: "boot"}}); err != nil || up.Bytes != 8 {
		t.Errorf("a frame of 8 bytes counts %d, %v", up.Bytes, err)
	}
}

// TestARequestThatIsTooLargeIsRefused: also one that hides its bytes where nobody looks.
func TestARequestThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	r := &droverv1.StartJobRequest{Stdin: make([]byte, maxRequest)}
	_, err := specFromRequest(r)
	if e := (*errs.Error)(nil); !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != "request" {
		t.Errorf("%v", err)
	}
	s := largest()
	p := specToProto(&s)
	if n := proto.Size(p); n > maxRequest-64<<10 {
		t.Errorf("the largest request that has bounds has %d bytes, %d are taken", n, maxRequest)
	}
}

// TestAListOfRevocations_IsSentWithoutACopy: as the message that any other codec makes.
func TestAListOfRevocations_IsSentWithoutACopy(t *testing.T) {
	t.Parallel()
	list := bytes.Repeat([]byte("revoked"), 1000)
	data, err := Codec().Marshal(revocationsFrame(list))
	if err != nil {
		t.Fatal(err)
	}
	var got droverv1.SessionRequest
	if err := proto.Unmarshal(data.Materialize(), &got); err != nil || !proto.Equal(&got, &droverv1.SessionRequest{Revocations: list}) {
		t.Errorf("it is another message: %v", err)
	}
	if last := data[len(data)-1].ReadOnlyData(); &last[0] != &list[0] {
		t.Error("the list was copied")
	}
}
