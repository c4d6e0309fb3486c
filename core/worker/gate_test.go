package worker

import (
	"testing"
	"time"
)

func TestTheGateHoldsUpManyAndNeverAFew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		live, last int
		want       time.Duration
	}{
		{"nothing", 0, 0, 0},
		{"one job", 1, 5, 0},
		{"a few", gateFrom - 1, 20, 0},
		{"one among many that only run", 10_000, 1, 0},
		{"many", gateFrom, 2, gateFrom * gateEach},
		{"very many", 10_000, 200, gateWidth},
	} {
		if got := gate(c.live, c.last); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
