package worker

import (
	"context"

	"github.com/droverhq/drover/core/cgroup"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/scripts"
)

// BindOutput fits an output store to a worker. The store's Exceeded callback
// should be the worker's Feed.OutputExceeded.
func BindOutput(s *output.Store) Output { return boundOutput{s} }

type boundOutput struct{ *output.Store }

// Take takes a pair of lanes.
func (b boundOutput) Take(key job.Key, o OutputOptions) (Lanes, error) {
	l, err := b.Store.Take(key, output.Options(o))
	return Lanes(l), err
}

// Resume takes them again after a restart.
func (b boundOutput) Resume(key job.Key, l Lanes, o OutputOptions) error {
	return b.Store.Resume(key, output.Lanes(l), output.Options(o))
}

// BindScripts fits a script library to a worker.
func BindScripts(l *scripts.Library) Scripts { return boundScripts{l} }

type boundScripts struct{ *scripts.Library }

// Pin finds a script and holds it.
func (b boundScripts) Pin(path string) (Pin, error) {
	p, err := b.Library.Pin(path)
	if err != nil {
		return Pin{}, err
	}
	return boundPin(p), nil
}

// PinGeneration holds a script of an earlier life again.
func (b boundScripts) PinGeneration(s journal.Script) (Pin, error) {
	p, err := b.Library.PinGeneration(s.Generation, s.Folder, s.Name)
	if err != nil {
		return Pin{}, err
	}
	return boundPin(p), nil
}

func boundPin(p *scripts.Pin) Pin {
	return Pin{
		Path: p.Path, Root: p.Root, Source: p.Source, Release: p.Release,
		Script: journal.Script{Generation: p.Generation, Folder: p.Folder, Name: p.Name, SHA256: p.SHA256},
	}
}

// BindGroups fits a cgroup manager to a worker.
func BindGroups(m *cgroup.Manager) Groups { return boundGroups{m} }

type boundGroups struct{ *cgroup.Manager }

// Acquire returns an empty group with these limits for a job of that user.
func (b boundGroups) Acquire(l job.Limits, uid int) (Group, error) {
	g, err := b.Manager.Acquire(l, uid)
	if err != nil {
		return nil, err
	}
	return boundGroup{g}, nil
}

// Reopen returns the group of that name.
func (b boundGroups) Reopen(name string) (Group, error) {
	g, err := b.Manager.Reopen(name)
	if err != nil {
		return nil, err
	}
	return boundGroup{g}, nil
}

type boundGroup struct{ *cgroup.Group }

// Stop ends every process and proves it.
func (b boundGroup) Stop(ctx context.Context, r StopRequest) (job.StopProof, error) {
	return b.Group.Stop(ctx, cgroup.StopRequest(r))
}

// Empty tells whether no process is left.
func (b boundGroup) Empty(r StopRequest) (bool, error) {
	return b.Group.Empty(cgroup.StopRequest(r))
}

// OOMKills counts kills for want of memory.
func (b boundGroup) OOMKills() (uint64, error) {
	u, err := b.Group.Usage()
	return u.OOMKills, err
}
