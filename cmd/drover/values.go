package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/cmd/drover/internal/render"
)

// duration is a flag like 90, 1m30s or 2d; it knows whether it was given,
// because 0 and nothing differ.
type duration struct {
	value time.Duration
	given bool
}

// Set implements pflag.Value.
func (d *duration) Set(s string) error {
	v, err := parseDuration(s)
	if err != nil {
		return err
	}
	d.value, d.given = v, true
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil && !math.IsNaN(n) && math.Abs(n) < math.MaxInt64/float64(time.Second) {
		return checkNegative(s, time.Duration(n*float64(time.Second)))
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && math.Abs(n) < 100_000 {
			return checkNegative(s, time.Duration(n*24*float64(time.Hour)))
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no duration such as 90s, 1m30s or 2d", s)
	}
	return checkNegative(s, v)
}

func checkNegative(s string, d time.Duration) (time.Duration, error) {
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	return d, nil
}

// String implements pflag.Value.
func (d *duration) String() string {
	if !d.given {
		return ""
	}
	return render.Duration(d.value)
}

// Type implements pflag.Value.
func (d *duration) Type() string { return "duration" }

// proto leaves out what was not given.
func (d *duration) proto() *durationpb.Duration {
	if !d.given {
		return nil
	}
	return durationpb.New(d.value)
}

// size is a flag like 4096, 512M or 2GiB; units are powers of 1024, as docker's.
type size uint64

// Set implements pflag.Value.
func (v *size) Set(s string) error {
	digits := strings.TrimRight(s, "bBkKmMgGtTiI")
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit(s[len(digits):])]
	n, err := strconv.ParseFloat(digits, 64)
	bytes := n * float64(uint64(1)<<shift)
	// Less than a byte is not zero, which stands for no limit; nor is what is too small
	// for a number.
	if err != nil || !ok || math.IsNaN(n) || n < 0 || bytes < 1 && strings.ContainsAny(digits, "123456789") || bytes > 1<<62 {
		return fmt.Errorf("%q is no size such as 4096, 512M or 2GiB", s)
	}
	*v = size(bytes)
	return nil
}

// unit brings K, KB, KiB and k to k.
func unit(s string) string {
	s = strings.ToLower(s)
	if len(s) > 1 {
		s = strings.TrimSuffix(strings.TrimSuffix(s, "b"), "i")
	}
	return s
}

// String implements pflag.Value.
func (v *size) String() string {
	if *v == 0 {
		return ""
	}
	return render.Size(uint64(*v))
}

// Type implements pflag.Value.
func (v *size) Type() string { return "size" }

// cpus is a flag like 0.5 or 2, kept in thousandths.
type cpus uint32

// Set implements pflag.Value.
func (v *cpus) Set(s string) error {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(n) || n < 0.001 || n > 4_000_000 {
		return fmt.Errorf("%q is no number of processors such as 0.5 or 2", s)
	}
	*v = cpus(math.Round(n * 1000))
	return nil
}

// String implements pflag.Value.
func (v *cpus) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*v)/1000, 'g', -1, 64)
}

// Type implements pflag.Value.
func (v *cpus) Type() string { return "number" }

// pairs is a repeatable flag of k=v.
type pairs map[string]string

// Set implements pflag.Value.
func (p *pairs) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("%q is not KEY=VALUE", s)
	}
	if *p == nil {
		*p = pairs{}
	}
	(*p)[k] = v
	return nil
}

// String implements pflag.Value.
func (p *pairs) String() string { return render.Labels(*p) }

// Type implements pflag.Value.
func (p *pairs) Type() string { return "k=v" }

// moment is a flag like 10m (ago), 2026-01-31 or 2026-01-31T08:00:00Z.
type moment struct {
	text string
}

// Set implements pflag.Value.
func (m *moment) Set(s string) error {
	m.text = s
	_, err := m.time(time.Unix(0, 0))
	return err
}

// String implements pflag.Value.
func (m *moment) String() string { return m.text }

// Type implements pflag.Value.
func (m *moment) Type() string { return "time" }

// time is the moment as seen from now; zero when it was not given.
func (m *moment) time(now time.Time) (time.Time, error) {
	if m.text == "" {
		return time.Time{}, nil
	}
	if d, err := parseDuration(m.text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, m.text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither a duration such as 10m nor a time such as 2026-01-31T08:00:00Z", m.text)
}

func (m *moment) proto(now time.Time) *timestamppb.Timestamp {
	t, err := m.time(now)
	if err != nil || t.IsZero() { // Set has refused what cannot be read
		return nil
	}
	return timestamppb.New(t)
}
