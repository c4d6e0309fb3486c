package rpc

import (
	"slices"

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

func indexToProto(x *job.ScriptIndex) *droverv1.ScriptIndex {
	p := &droverv1.ScriptIndex{Generation: x.Generation, Scripts: make([]*droverv1.Script, len(x.Scripts))}
	for i := range x.Scripts {
		p.Scripts[i] = scriptToProto(&x.Scripts[i])
	}
	return p
}

func indexFromProto(p *droverv1.ScriptIndex) *job.ScriptIndex {
	if p == nil {
		return nil
	}
	x := &job.ScriptIndex{Generation: p.GetGeneration(), Scripts: make([]job.ScriptInfo, len(p.GetScripts()))}
	for i, s := range p.GetScripts() {
		x.Scripts[i] = job.ScriptInfo{
			Path: s.GetPath(), Folder: s.GetFolder(), SHA256: s.GetSha256(),
			Size: int64(s.GetSize()), ModTime: timeOf(s.GetModifyTime()),
		}
	}
	return x
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
	return &droverv1.Worker{
		WorkerId: w.ID.String(), Name: w.Name, Address: w.Address, State: droverv1.WorkerState(w.State), Labels: w.Labels,
		Slots: uint32(w.Slots), Running: uint32(max(w.Running, 0)), Runners: runnersToProto(w.Runners),
		Scripts: uint32(len(w.Scripts.Scripts)), LeaseExpires: timestamp(w.LeaseEnd), BootId: w.BootID, Version: w.Version,
		Conditions: conditionsToProto(conditions), DrainReason: w.DrainReason, Commands: w.Commands,
		Uploads: w.Uploads,
	}
}
