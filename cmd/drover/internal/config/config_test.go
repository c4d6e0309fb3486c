package config_test

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/droverhq/drover/cmd/drover/internal/config"
	"github.com/droverhq/drover/core/errs"
)

type settings struct {
	listen  string
	slots   int
	scripts []string
	labels  map[string]string
}

func flags(t *testing.T, args ...string) (*pflag.FlagSet, *settings) {
	t.Helper()
	var s settings
	f := pflag.NewFlagSet("worker", pflag.ContinueOnError)
	f.StringVar(&s.listen, "listen", "127.0.0.1:7430", "")
	f.IntVar(&s.slots, "slots", 4, "")
	f.StringArrayVar(&s.scripts, "scripts", nil, "")
	f.StringToStringVar(&s.labels, "label", nil, "")
	f.String("config", "", "")
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f, &s
}

func loader(env map[string]string, file string) *config.Loader {
	return &config.Loader{
		Prefix:  "DROVER_WORKER",
		Exclude: []string{"config"},
		Lookup:  func(n string) (string, bool) { v, ok := env[n]; return v, ok },
		Read: func(string) ([]byte, error) {
			if file == "" {
				return nil, fs.ErrNotExist
			}
			return []byte(file), nil
		},
	}
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	t.Parallel()
	file := "listen: file:1\nslots: 9\nscripts:\n  - /a\n  - /b\nlabel:\n  gpu: \"yes\"\n  zone: eu\n"
	f, s := flags(t, "--listen", "flag:1")
	origin, err := loader(map[string]string{"DROVER_WORKER_SLOTS": "7", "DROVER_WORKER_LISTEN": "env:1"}, file).Load(f, "w.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if s.listen != "flag:1" || origin["listen"] != "flag" {
		t.Errorf("listen %q from %q", s.listen, origin["listen"])
	}
	if s.slots != 7 || origin["slots"] != "environment DROVER_WORKER_SLOTS" {
		t.Errorf("slots %d from %q", s.slots, origin["slots"])
	}
	if strings.Join(s.scripts, ",") != "/a,/b" || origin["scripts"] != "w.yaml:3" {
		t.Errorf("scripts %v from %q", s.scripts, origin["scripts"])
	}
	if s.labels["gpu"] != "yes" || s.labels["zone"] != "eu" {
		t.Errorf("labels %v", s.labels)
	}
	var out bytes.Buffer
	if err := config.Print(&out, f, origin); err != nil || !strings.Contains(out.String(), "listen: flag:1  # flag\n") {
		t.Errorf("printed %q, %v", out.String(), err)
	}
	if strings.Contains(out.String(), "config:") {
		t.Error("the config flag is printed as a setting")
	}
}

func TestMistakesNameFileLineAndKey(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, file, want, hint string }{
		{"unknown key", "slots: 1\nlisten_: x\n", "read w.yaml:2: listen_", `did you mean "listen"?`},
		{"bad value", "\nslots: many\n", `read w.yaml:2: slots: "many" is not a whole number`, ""},
		{"too large", "slots: 99999999999999999999\n", `w.yaml:1: slots: "99999999999999999999" is too large or too small for a whole number`, ""},
		{"not a mapping", "- a\n- b\n", "read w.yaml:1", ""},
		{"a tag", "slots: !x\n", `read w.yaml:1:8: tags such as "!x" are not supported`, "YAML"},
		{"syntax", "slots: 3\nscripts: [a\n", "read w.yaml:2:10: sequence end token ']' not found", "YAML"},
		{"missing file", "", "read configuration", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, s := flags(t)
			_, err := loader(nil, c.file).Load(f, "w.yaml")
			if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			var e *errs.Error
			if errors.As(err, &e); !strings.Contains(e.Hint, c.hint) {
				t.Errorf("hint %q, want %q", e.Hint, c.hint)
			}
			if s.listen != "127.0.0.1:7430" {
				t.Errorf("a mistake changed listen to %q", s.listen)
			}
		})
	}
}

func TestBadEnvironmentNamesTheVariable(t *testing.T) {
	t.Parallel()
	f, _ := flags(t)
	_, err := loader(map[string]string{"DROVER_WORKER_SLOTS": "x"}, "").Load(f, "")
	if err == nil || !strings.HasSuffix(err.Error(), `DROVER_WORKER_SLOTS: "x" is not a whole number`) {
		t.Errorf("got %v", err)
	}
}

func TestASettingThatIsNotTextIsRefused(t *testing.T) {
	t.Parallel()
	for name, load := range map[string]func() error{
		"flag": func() error {
			f, _ := flags(t, "--label", "zone=\xff")
			_, err := loader(nil, "").Load(f, "")
			return err
		},
		"environment": func() error {
			f, _ := flags(t)
			_, err := loader(map[string]string{"DROVER_WORKER_LABEL": "zone=\xff"}, "").Load(f, "")
			return err
		},
		"file": func() error {
			f, _ := flags(t)
			_, err := loader(nil, "label: {zone: \xff}\n").Load(f, "w.yaml")
			return err
		},
	} {
		err := load()
		if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
