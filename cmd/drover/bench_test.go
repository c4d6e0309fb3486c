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

// TestAPartThatFailsDoesNotStopTheOthers: nor is what was measured thrown away.
func TestAPartThatFailsDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	broken := errors.New("no scheduler")
	one := func(name string, err error) namedPart {
		return namedPart{name, part{measure: func(context.Context, *env) (figures, error) {
			if err != nil {
				return figures{}, err
			}
			return table(map[string]int{"n": 1}, []string{"N"}, [][]string{{"1"}}), nil
		}}}
	}
	e := osEnv()
	e.stderr = &bytes.Buffer{}
	got, err := measureParts(t.Context(), e, []namedPart{one("first", nil), one("second", broken), one("third", nil)})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), `"second"`) {
		t.Errorf("ended with %v", err)
	}
	if parts := got.document.(map[string]any); len(parts) != 2 || parts["first"] == nil || parts["third"] == nil || len(got.sheets) != 2 {
		t.Errorf("got %+v", got)
	}
}
