package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/render"
)

// version is set by the linker.
var version = "unknown"

// versionInfo is what "drover version" tells.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version of drover", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			v := thisVersion()
			return render.One(p, v, func() []render.Field {
				return []render.Field{{Name: "drover", Value: v.Version}, {Name: "commit", Value: v.Commit}, {Name: "built with", Value: v.Go + " for " + v.Platform}}
			})
		},
	}
	o.register(cmd)
	return cmd
}

func thisVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			v.Commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = " (modified)"
		}
	}
	if v.Commit != "" {
		v.Commit += dirty
	}
	return v
}

// Cells implements render.Row.
func (v versionInfo) Cells(*render.Printer) []string {
	return []string{fmt.Sprintf("drover %s", v.Version)}
}

// Key implements render.Row.
func (v versionInfo) Key() string { return v.Version }

// Label implements render.Row.
func (v versionInfo) Label() string { return v.Version }
