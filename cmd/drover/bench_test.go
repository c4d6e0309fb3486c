package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// TestFiguresOfAnUnfinishedMeasurementAreShown: an hour of measuring is not lost
// because its last part fails.
func TestFiguresOfAnUnfinishedMeasurementAreShown(t *testing.T) {
	t.Parallel()
	broken := errors.New("9900 workers did not join")
	var out bytes.Buffer
	e := osEnv()
	e.stdout = &out
	p := part{
		check: func() error { return nil },
		measure: func(context.Context, *env) (figures, error) {
			return table(map[string]int{"workers": 10}, []string{"WORKERS"}, [][]string{{"10"}}), broken
		},
	}
	if err := p.run(t.Context(), e, &output{format: "json"}); !errors.Is(err, broken) {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(out.String(), `"workers": 10`) {
		t.Errorf("printed %q", out.String())
	}
}
