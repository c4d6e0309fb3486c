package rpc

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func runnersToProto(rs []job.RunnerInfo) []*droverv1.RunnerInfo {
	out := make([]*droverv1.RunnerInfo, len(rs))
	for i, r := range rs {
		out[i] = &droverv1.RunnerInfo{
			Name: r.Name, Version: r.Version, Sha256: r.SHA256, State: r.State,
			Jobs: uint32(r.Jobs), Commands: r.Commands, Message: r.Message,
		}
	}
	return out
}

// runnersFromProto never returns nil: nil means "unchanged" in a frame.
func runnersFromProto(ps []*droverv1.RunnerInfo) []job.RunnerInfo {
	out := make([]job.RunnerInfo, len(ps))
	for i, p := range ps {
		out[i] = job.RunnerInfo{
			Name: p.GetName(), Version: p.GetVersion(), SHA256: p.GetSha256(), State: p.GetState(),
			Jobs: int(p.GetJobs()), Commands: p.GetCommands(), Message: p.GetMessage(),
		}
	}
	return out
}

func scriptToProto(s *job.ScriptInfo) *droverv1.Script {
	return &droverv1.Script{
		Path: s.Path, Folder: s.Folder, Sha256: s.SHA256, Size: uint64(s.Size), ModifyTime: timestamp(s.ModTime),
	}
}

// indexToProto cuts an index into parts that frames have room for. A scheduler that
// takes no parts gets the first one only, when the whole is larger than a message.
func indexToProto(x *job.ScriptIndex, parts bool) []*droverv1.ScriptIndex {
	var out []*droverv1.ScriptIndex
	for scripts := range frames(x.Scripts, scriptToProto) {
		if n := len(out); n > 0 {
			out[n-1].More = true
		}
		out = append(out, &droverv1.ScriptIndex{Generation: x.Generation, Scripts: scripts, Part: uint32(len(out))})
	}
	switch {
	case len(out) == 0:
		return []*droverv1.ScriptIndex{{Generation: x.Generation}}
	case parts || len(out) == 1:
		return out
	}
	if whole := joined(out); proto.Size(whole) <= MaxMessage-frameBytes/2 {
		return []*droverv1.ScriptIndex{whole}
	}
	out[0].More = false
	return out[:1]
}

// joined makes one index of its parts.
func joined(parts []*droverv1.ScriptIndex) *droverv1.ScriptIndex {
	whole := &droverv1.ScriptIndex{Generation: parts[0].GetGeneration()}
	for _, p := range parts {
		whole.Scripts = append(whole.Scripts, p.GetScripts()...)
	}
	return whole
}

// indexParts puts the parts of an index together. It belongs to one session.
type indexParts struct {
	whole job.ScriptIndex
	bytes int    // of its texts
	next  uint32 // number of the part that follows
}

// add takes a part; nil is none. With the last one it returns the whole index.
func (x *indexParts) add(p *droverv1.ScriptIndex) (*job.ScriptIndex, error) {
	if p == nil {
		return nil, nil //nolint:nilnil // most frames have none
	}
	if p.GetPart() == 0 {
		*x = indexParts{whole: job.ScriptIndex{Generation: p.GetGeneration()}}
	}
	if p.GetPart() != x.next || p.GetGeneration() != x.whole.Generation {
		return nil, errs.Field("read session", "scripts.part", "INDEX_PART", "part %d of generation %d comes where part %d of generation %d is due",
			p.GetPart(), p.GetGeneration(), x.next, x.whole.Generation)
	}
	for _, s := range p.GetScripts() {
		if fits := len(s.GetPath()) <= job.MaxPath && len(s.GetFolder()) <= job.MaxName && len(s.GetSha256()) <= job.MaxCode; !fits || len(x.whole.Scripts) == job.MaxScripts {
			continue // no worker of drover lists such
		}
		script := job.ScriptInfo{
			Path: s.GetPath(), Folder: s.GetFolder(), SHA256: s.GetSha256(),
			Size: int64(s.GetSize()), ModTime: timeOf(s.GetModifyTime()),
		}
		if x.bytes += script.Bytes(); x.bytes > job.MaxScriptsBytes {
			return nil, errs.Field("read session", "scripts", "TOO_LARGE", "the worker's list of scripts has more than %d MiB of paths and sums", job.MaxScriptsBytes>>20)
		}
		x.whole.Scripts = append(x.whole.Scripts, script)
	}
	if x.next++; p.GetMore() {
		return nil, nil //nolint:nilnil // it is not whole yet
	}
	whole := x.whole
	*x = indexParts{}
	return &whole, nil
}

func conditionsToProto(cs []job.Condition) []*droverv1.Condition {
	out := make([]*droverv1.Condition, len(cs))
	for i, c := range cs {
		out[i] = &droverv1.Condition{Type: c.Type, Message: c.Message, Since: timestamp(c.Since)}
	}
	return out
}

func conditionsFromProto(ps []*droverv1.Condition) []job.Condition {
	out := make([]job.Condition, len(ps))
	for i, p := range ps {
		out[i] = job.Condition{Type: p.GetType(), Message: p.GetMessage(), Since: timeOf(p.GetSince())}
	}
	return out
}

func workerToProto(w *registry.Worker) *droverv1.Worker {
	conditions := w.Conditions
	if w.Trouble != (job.Condition{}) {
		conditions = append(slices.Clip(conditions), w.Trouble)
	}
	if len(w.Unrecorded) > 0 {
		conditions = append(slices.Clip(conditions), unrecordedCondition(w))
	}
	return &droverv1.Worker{
		WorkerId: w.ID.String(), Name: w.Name, Address: w.Address, State: droverv1.WorkerState(w.State), Labels: w.Labels,
		Slots: uint32(w.Slots), Running: uint32(max(w.Running, 0)), Runners: runnersToProto(w.Runners),
		Scripts: uint32(len(w.Scripts.Scripts)), LeaseExpires: timestamp(w.LeaseEnd), BootId: w.BootID, Version: w.Version,
		Conditions: conditionsToProto(conditions), DrainReason: w.DrainReason, Commands: w.Commands,
		Uploads: w.Uploads,
	}
}

// unrecordedCondition tells of attempts that a worker has and the records do not.
func unrecordedCondition(w *registry.Worker) job.Condition {
	live := 0
	for i := range w.Unrecorded {
		if !w.Unrecorded[i].State.Terminal() {
			live++
		}
	}
	return job.Condition{Type: registry.Unrecorded, Message: fmt.Sprintf(
		"attempts that it has and the scheduler has no record of: %d, live: %d; \"drover workers show %s\" lists them", len(w.Unrecorded), live, w.Name)}
}

func unrecordedToProto(w *registry.Worker) []*droverv1.UnrecordedAttempt {
	paths := w.ScriptPaths(w.Unrecorded)
	out := make([]*droverv1.UnrecordedAttempt, len(w.Unrecorded))
	for i := range w.Unrecorded {
		r := &w.Unrecorded[i]
		out[i] = &droverv1.UnrecordedAttempt{Report: reportToProto(r), Path: paths[r.ScriptSHA256]}
	}
	return out
}
