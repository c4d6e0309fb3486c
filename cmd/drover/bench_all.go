package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/scheduler"
)

// allFlags say how much each part measures, and where the result goes too.
type allFlags struct {
	*benchFlags
	stream streamFlags
	memory memoryFlags
	scale  scaleFlags
	skip   []string
	save   string
}

func newBenchAll(e *env, b *benchFlags) *cobra.Command {
	a := allFlags{benchFlags: b, stream: streamFlags{benchFlags: b, size: 1 << 30}}
	a.scale.plan, a.scale.lease = measure.ScalePlan{Samples: 100}, scheduler.DefaultLease
	cmd := &cobra.Command{
		Use: "all", Short: "Measure every part, one after the other", Args: exactly(),
		Long: "all runs the parts one after the other: spawn, jobs, latency, stream, scale in a small size, and\n" +
			"memory. The result is one document, or a table for each part. One that fails does not stop the others.",
		Example: "  drover bench all --peer auto --save figures.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return part{a.check, a.measure}.run(cmd.Context(), e, &b.output)
		},
	}
	f := cmd.Flags()
	a.stream.register(cmd)
	f.IntVar(&a.memory.jobs, "jobs", 1000, "how many jobs run at once while memory is measured")
	f.IntSliceVar(&a.scale.workers, "workers", []int{10, 100}, "how many simulated workers a scheduler gets")
	f.DurationVar(&a.scale.plan.Steady, "steady", 5*time.Second, "how long their silent cluster is watched")
	f.IntVar(&a.scale.plan.Queued, "queued", 1000, "how many jobs wait for them")
	f.StringSliceVar(&a.skip, "skip", nil, "parts to leave out")
	f.StringVar(&a.save, "save", "", "also write the result as JSON into this `file`")
	b.register(cmd)
	return cmd
}

// namedPart is a part that others are measured with.
type namedPart struct {
	name string
	part
}

// parts in the order in which they are measured. Memory is last: it waits for a
// quiet machine.
func (a *allFlags) parts() []namedPart {
	all := []namedPart{
		{"spawn", a.part(a.spawn)},
		{"jobs", a.part(a.jobs)},
		{"latency", a.part(a.latency)},
		{"stream", part{a.stream.check, a.stream.measure}},
		{"scale", part{a.scale.check, a.scale.measure}},
		{"memory", part{a.memory.check, a.memory.measure}},
	}
	return slices.DeleteFunc(all, func(p namedPart) bool { return slices.Contains(a.skip, p.name) })
}

func (a *allFlags) check() error {
	names := a.partNames()
	for _, name := range a.skip {
		if !slices.Contains(names, name) {
			return errs.Field("measure", "--skip", "PART", "%q is none of %s", name, strings.Join(names, ", "))
		}
	}
	for _, p := range a.parts() {
		if err := p.check(); err != nil {
			return err
		}
	}
	return nil
}

func (a allFlags) partNames() []string {
	a.skip = nil
	var names []string
	for _, p := range a.parts() {
		names = append(names, p.name)
	}
	return names
}

func (a *allFlags) measure(ctx context.Context, e *env) (figures, error) {
	all, err := measureParts(ctx, e, a.parts())
	if a.save != "" && (err == nil || len(all.sheets) > 0) { // figures of before stay when there are none
		err = errors.Join(err, saveJSON(a.save, all.document))
	}
	return all, err
}

// measureParts goes on after a part that fails: what takes minutes is not thrown
// away for it.
func measureParts(ctx context.Context, e *env, parts []namedPart) (figures, error) {
	documents := map[string]any{}
	all := figures{document: documents}
	var failed []error
	for _, p := range parts {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(e.stderr, "Part %q of the measurement.\n", p.name)
		got, err := p.measure(ctx, e)
		if err != nil {
			failed = append(failed, fmt.Errorf("measure part %q: %w", p.name, err))
		}
		if got.document == nil {
			continue
		}
		documents[p.name] = got.document
		for i, s := range got.sheets {
			if i == 0 {
				s.Title = "drover bench " + p.name
			}
			all.sheets = append(all.sheets, s)
		}
	}
	if len(failed) == 0 {
		return all, ctx.Err() //nolint:wrapcheck // it was asked to end, and no more is to be said
	}
	return all, errors.Join(failed...)
}

// saveJSON writes a document into a file whose folder may not be there yet.
func saveJSON(path string, document any) error {
	data, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save the figures: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil { //nolint:gosec // figures for everybody
		return fmt.Errorf("save the figures: %w", err)
	}
	return nil
}
