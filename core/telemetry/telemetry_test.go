package telemetry_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/telemetry"
)

func TestLoggerWritesItsFormatFromItsLevelUp(t *testing.T) {
	t.Parallel()
	var text, object bytes.Buffer
	for _, c := range []struct {
		buf    *bytes.Buffer
		format telemetry.Format
	}{{&text, telemetry.Text}, {&object, telemetry.JSON}} {
		log, err := telemetry.NewLogger(c.buf, c.format, "warn")
		if err != nil {
			t.Fatal(err)
		}
		log.Info("hidden")
		log.Warn("worker offline", "worker", "w1")
	}
	if got := text.String(); strings.Contains(got, "hidden") || !strings.Contains(got, `msg="worker offline" worker=w1`) {
		t.Errorf("text: %q", got)
	}
	var line map[string]any
	if err := json.Unmarshal(object.Bytes(), &line); err != nil || line["worker"] != "w1" {
		t.Errorf("json: %v in %q", err, object.String())
	}
}

func TestBadSettingsNameTheFlag(t *testing.T) {
	t.Parallel()
	if _, err := telemetry.NewLogger(nil, telemetry.Text, "loud"); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "log-level") {
		t.Errorf("level: %v", err)
	}
	if _, err := telemetry.NewLogger(nil, "xml", "info"); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "log-format") {
		t.Errorf("format: %v", err)
	}
}
