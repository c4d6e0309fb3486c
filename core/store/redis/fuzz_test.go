package redis

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzURL: no URL ends the process, and no error or shown form of one holds its
// password.
func FuzzURL(f *testing.F) {
	for _, s := range []string{
		"redis://drover@redis.example.org:6379/0", "rediss://u:SECRET@h/1?prefix=x&pool=3&timeout=2s", "redis+unix:///run/redis.sock?db=2",
		"redis://:SECRET@[::1]:1", "redis://%zz", "redis://h?password_file=/x&patience=1h", "REDIS://h", "rediss://h?ca=/nowhere",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if !IsURL(raw) || strings.Contains(raw, "password_file") || strings.Contains(raw, "ca=") || strings.Contains(raw, "cert=") {
			return // files of this machine
		}
		_, err := ParseURL(raw, func(string) string { return "" })
		u, errURL := url.Parse(raw)
		if errURL != nil {
			return
		}
		password, _ := u.User.Password()
		if len(password) < 6 || strings.Count(raw, password) != 1 {
			return
		}
		if err != nil && strings.Contains(err.Error(), password) || strings.Contains(Redact(raw), password) {
			t.Errorf("%q: the password is shown: %v, %q", raw, err, Redact(raw))
		}
	})
}

// FuzzAnswer: an answer that Redis should not give is an error, never a panic, and
// what is taken is in order.
func FuzzAnswer(f *testing.F) {
	f.Add("a=1,b=2", "a=+x", int64(0), int64(1))
	f.Add("", "a=", int64(1), int64(0))
	f.Add("k", "", int64(1), int64(1))
	f.Fuzz(func(t *testing.T, present, past string, more, pastMore int64) {
		flat := func(s string) []any {
			var out []any
			for pair := range strings.SplitSeq(s, ",") {
				if key, value, ok := strings.Cut(pair, "="); ok {
					out = append(out, key, value)
				} else if s != "" {
					out = append(out, int64(len(pair)))
				}
			}
			return out
		}
		a, b, err := decodePage([]any{more, flat(present), pastMore, flat(past)})
		if err != nil {
			return
		}
		for _, reverse := range []bool{false, true} {
			merge(a, b, reverse)
		}
	})
}
