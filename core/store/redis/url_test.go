package redis_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store/redis"
)

func TestURLs(t *testing.T) {
	t.Parallel()
	environment := map[string]string{redis.EnvPassword: "from-env"}
	for raw, want := range map[string]redis.Config{
		"redis://h":                   {Network: "tcp", Address: "h:6379", Prefix: "drover", Password: "from-env"},
		"redis://h:1/3":               {Network: "tcp", Address: "h:1", DB: 3, Prefix: "drover", Password: "from-env"},
		"redis://u:p%40q@[::1]:7/":    {Network: "tcp", Address: "[::1]:7", User: "u", Password: "p@q", Prefix: "drover"},
		"redis://u@h?db=2&prefix=a.b": {Network: "tcp", Address: "h:6379", DB: 2, User: "u", Password: "from-env", Prefix: "a.b"},
		"redis://:p@h?password_file=/f": {
			Network: "tcp", Address: "h:6379", PasswordFile: "/f", Prefix: "drover",
		},
		"redis+unix:///run/r.sock?db=4&pool=3&timeout=1s&patience=1m": {
			Network: "unix", Address: "/run/r.sock", DB: 4, Pool: 3, Timeout: time.Second, Patience: time.Minute,
			Prefix: "drover", Password: "from-env",
		},
	} {
		got, err := redis.ParseURL(raw, func(name string) string { return environment[name] })
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", raw, d)
		}
	}
}

func TestAFileOfTheEnvironmentGoesBeforeAPassword(t *testing.T) {
	t.Parallel()
	environment := map[string]string{redis.EnvPassword: "p", redis.EnvPasswordFile: "/f"}
	c, err := redis.ParseURL("redis://h", func(name string) string { return environment[name] })
	if err != nil || c.PasswordFile != "/f" || c.Password != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

// No mistake makes the error quote the URL: it holds a password.
func TestMistakesInAURLAreToldWithoutIt(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{
		"redis://u:SECRET@", "redis://u:SECRET@h:port", "redis://u:SECRET@h/x", "redis://u:SECRET@h/-1", "redis://u:SECRET@h?colour=1",
		"redis://u:SECRET@h?pool=many", "redis://u:SECRET@h?timeout=-1s", "redis://u:SECRET@h?prefix=a%20b", "redis://u:SECRET@h?prefix=",
		"redis://u:SECRET@h?ca=/x", "rediss://u:SECRET@h?ca=/nowhere", "rediss://u:SECRET@h?ca=" + empty, "rediss://u:SECRET@h?cert=/x",
		"redis+unix://u:SECRET@run/r.sock", "redis+unix://", "redis:u:SECRET", "http://u:SECRET@h", "redis://u:SECRET@h\x7f", "redis://u:SECRET@h?%zz",
	} {
		_, err := redis.ParseURL(raw, nothing)
		if err == nil || strings.Contains(err.Error(), "SECRET") || !strings.HasPrefix(errs.ReasonOf(err), "STORE_") {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"embedded":                  "embedded",
		"redis://u:SECRET@h/1":      "redis://u:xxxxx@h/1",
		"rediss://:SECRET@h":        "rediss://:xxxxx@h",
		"redis://h":                 "redis://h",
		"redis://u:SECRET@h\x7f":    "redis://...",
		"REDIS://u:SECRET@h:port/1": "REDIS://...",
	} {
		if got := redis.Redact(raw); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}
