package worker

import (
	"context"
	"fmt"

	"github.com/droverhq/drover/core/job"
)

// noGroup stands in for a group that does not exist any more. A cgroup can be
// removed only when no process is in it (cgroups(7)), so it is empty.
type noGroup struct{}

// Name is none.
func (noGroup) Name() string { return "" }

// Dir is none.
func (noGroup) Dir() string { return "" }

// Tasks is none.
func (noGroup) Tasks() []string { return nil }

// Empty is always true.
func (noGroup) Empty(StopRequest) (bool, error) { return true, nil }

// OOMKills is always 0.
func (noGroup) OOMKills() (uint64, error) { return 0, nil }

// Release does nothing.
func (noGroup) Release() error { return nil }

// Stop has nothing to stop.
func (noGroup) Stop(context.Context, StopRequest) (job.StopProof, error) {
	return job.StopProof{Method: neverStartedProof}, nil
}

// shutGroup stands in for a group that could not be opened. Nothing is claimed
// about it before it can be: LOST and STOPPED need proof (P4, P9).
type shutGroup struct {
	noGroup
	open func() (Group, error)
}

// Empty is an error until the group can be opened.
func (s shutGroup) Empty(r StopRequest) (bool, error) {
	g, err := s.open()
	if err != nil {
		return false, fmt.Errorf("reopen cgroup: %w", err)
	}
	return g.Empty(r)
}

// Stop is an error until the group can be opened.
func (s shutGroup) Stop(ctx context.Context, r StopRequest) (job.StopProof, error) {
	g, err := s.open()
	if err != nil {
		return job.StopProof{}, fmt.Errorf("reopen cgroup: %w", err)
	}
	return g.Stop(ctx, r)
}
