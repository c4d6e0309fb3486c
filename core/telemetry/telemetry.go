// Package telemetry makes the structured logger of the daemons.
package telemetry

import (
	"io"
	"log/slog"

	"github.com/droverhq/drover/core/errs"
)

// Format is how log lines look.
type Format string

// The formats.
const (
	Text Format = "text" // logfmt, for people and journald
	JSON Format = "json" // one object per line
)

// NewLogger makes a logger that writes lines of at least level ("debug",
// "info", "warn" or "error") to w. The logger may be used concurrently.
func NewLogger(w io.Writer, format Format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errs.Field("make logger", "log-level", "LEVEL_UNKNOWN", "%q is none of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case Text:
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case JSON:
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, errs.Field("make logger", "log-format", "FORMAT_UNKNOWN", "%q is none of text, json", format)
	}
}
