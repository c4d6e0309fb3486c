package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// steering is text that moves the cursor, sets the title, changes colours, turns
// the direction, hides, and forges a line.
const steering = "x\x1b]0;pwned\a\x1b[35m\u009b31m\u0085\x7f\b\u202e\u2066\u200f\u061c\u2028\u200b\ufeff\U000e0041\r\nFORGED"

// own matches the control sequences that drover itself sends to a terminal.
var own = regexp.MustCompile("\x1b\\[(0|31|32|33|34|90)m|\r\x1b\\[K")

// bytesOfJob is steering as a job prints it: line breaks are its own.
var bytesOfJob = strings.ReplaceAll(steering, "FORGED", "") + "\x9b\xff"

// steered says what in the output of a verb could steer a terminal; "" is nothing.
func steered(out string) string {
	out = own.ReplaceAllString(out, "")
	for i, r := range out {
		if _, size := utf8.DecodeRuneInString(out[i:]); term.Steers(r) && r != '\n' && r != '\t' || r == utf8.RuneError && size == 1 {
			return out[max(0, i-40):min(len(out), i+40)]
		}
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "FORGED") {
			return line
		}
	}
	return ""
}

// poison sets every text of a message, but for those whose name is in keep.
func poison(m protoreflect.Message, keep ...string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		text := f.Kind() == protoreflect.StringKind
		switch {
		case strings.Contains(" "+strings.Join(keep, " ")+" ", " "+string(f.Name())+" ") || f.ContainingOneof() != nil && !f.HasOptionalKeyword():
		case f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(steering).MapKey(), protoreflect.ValueOfString(steering))
		case f.IsMap():
		case f.IsList() && text:
			m.Mutable(f).List().Append(protoreflect.ValueOfString(steering))
		case f.IsList() && f.Message() != nil:
			element := m.Mutable(f).List().AppendMutable().Message()
			poison(element, keep...)
		case f.IsList():
		case text:
			m.Set(f, protoreflect.ValueOfString(steering))
		case f.Message() != nil && f.Message().FullName().Parent() == "drover.v1":
			poison(m.Mutable(f).Message(), keep...)
		}
	}
}

// hostileFake is a cluster all of whose texts are hostile.
func hostileFake(t *testing.T) *fake {
	t.Helper()
	f := startFake(t, t.TempDir())
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.workers {
		poison(w.ProtoReflect(), "worker_id")
	}
	for _, s := range f.scripts {
		poison(s.ProtoReflect(), "path", "worker_ids")
		s.Path = steering
	}
	return f
}

// hostileJob is an ended job all of whose texts are hostile.
func (f *fake) hostileJob() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.add(&droverv1.StartJobRequest{Path: "hello.sh"})
	poison(j.job.ProtoReflect(), "job_id", "stdout", "stderr")
	j.job.Spec.Path = "hello.sh" // a rerun asks for it
	j.out[1][0].data, j.out[1][1].data = []byte(bytesOfJob), []byte(bytesOfJob)
	j.end(droverv1.JobState_JOB_STATE_FAILED, steering)
	return j.job.GetJobId()
}

// refuse makes every call fail with a hostile error.
func (f *fake) refuse() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = errs.E(steering, errs.Precondition, steering, errors.New(steering)).WithHint("%s", steering)
}

// leaves are the commands that do something, by path.
func leaves(c *cobra.Command) map[string]*cobra.Command {
	all := map[string]*cobra.Command{}
	for _, below := range c.Commands() {
		for path, leaf := range leaves(below) {
			all[path] = leaf
		}
	}
	if path := verb(c); path != "" && c.Runnable() {
		all[path] = c
	}
	return all
}

// local are verbs that ask no scheduler for anything, or are daemons, or start some.
func local(path string) bool {
	first, _, _ := strings.Cut(path, " ")
	switch first {
	case "dev", "worker", "bench", "chaos", "certs", "store", "context", "completion", "help", "man", "version":
		return path != "worker ls"
	}
	return path == "scheduler" || path == "scheduler restore" || first == "plugin" && path != "plugin ls"
}

// arguments are what a verb is called with in the place of the words of its usage.
func arguments(t *testing.T, f *fake, c *cobra.Command) []string {
	t.Helper()
	switch verb(c) {
	case "run":
		return []string{"hello.sh", bytesOfJob[:len(bytesOfJob)-2]}
	case "exec":
		return []string{"--", "uname", bytesOfJob[:len(bytesOfJob)-2]}
	case "stop":
		return []string{f.hostileJob()}
	}
	var args []string
	for _, word := range strings.Fields(c.Use)[1:] {
		switch strings.TrimSuffix(word, "...") {
		case "JOB":
			args = append(args, f.hostileJob())
		case "WORKER":
			args = append(args, f.workers[1].GetWorkerId())
		case "SCRIPT":
			args = append(args, steering)
		case "FILE":
			args = append(args, filepath.Join(t.TempDir(), "file"))
		case "[ls]":
		default:
			t.Fatalf("%q: the test does not know what to put in the place of %s", verb(c), word)
		}
	}
	return args
}

// shared is a buffer that several goroutines write to.
type shared struct {
	mu sync.Mutex
	bytes.Buffer
}

// Write implements io.Writer.
func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}

// play runs one command line with a terminal on both outputs.
func (f *fake) play(args []string) string {
	out, _ := f.playCode(args)
	return out
}

func (f *fake) playCode(args []string) (string, problem.Code) {
	var out shared
	screen := term.NewTerminal(&out)
	vars := f.environment(map[string]string{"TERM": "xterm"})
	e := &env{
		stdin: strings.NewReader(""), stdout: screen, stderr: screen, getenv: func(n string) string { return vars[n] }, now: time.Now,
		notify: func(...os.Signal) (<-chan os.Signal, func()) { return nil, func() {} },
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code := run(ctx, e, args)
	return out.String(), code
}

// TestNoVerbLetsTheClusterSteerTheTerminal walks every verb in every format, with
// a cluster that answers with hostile texts and one that refuses with them.
func TestNoVerbLetsTheClusterSteerTheTerminal(t *testing.T) {
	t.Parallel()
	answering, refusing := hostileFake(t), hostileFake(t)
	refusing.refuse()
	walked := 0
	for path, c := range leaves(newRoot(silentEnv(), nil)) {
		if local(path) {
			continue
		}
		formats := []string{""}
		if c.Flags().Lookup("output") != nil {
			formats = render.Formats()
		}
		for _, format := range formats {
			for name, f := range map[string]*fake{"answer": answering, "refusal": refusing} {
				walked++
				t.Run(strings.Join([]string{path, format, name}, " "), func(t *testing.T) {
					t.Parallel()
					args := append(strings.Fields(path), arguments(t, f, c)...)
					if format != "" {
						args = append(args, "-o", format)
					}
					out := f.play(args)
					if bad := steered(out); bad != "" {
						t.Errorf("%q reaches the terminal", bad)
					}
					if name == "refusal" && !strings.Contains(out, "pwned") {
						t.Errorf("the refusal is not shown:\n%s", out)
					}
				})
			}
		}
	}
	if walked < 100 {
		t.Errorf("only %d command lines were walked", walked)
	}
}

// TestNoCompletionSteersTheTerminal: a shell shows what it gets from drover
// through a pipe.
func TestNoCompletionSteersTheTerminal(t *testing.T) {
	t.Parallel()
	f := hostileFake(t)
	f.hostileJob()
	file := filepath.Join(f.dir, ".config", "drover", "config.yaml")
	var text strings.Builder
	for _, r := range steering {
		fmt.Fprintf(&text, `\U%08x`, r) // YAML takes them only as escapes
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(`contexts: {"`+text.String()+`": {address: "`+text.String()+`"}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for path, c := range leaves(newRoot(silentEnv(), nil)) {
		lines := [][]string{{""}}
		for _, flag := range []string{"worker", "context", "label", "state", "output"} {
			if c.Flags().Lookup(flag) != nil || c.InheritedFlags().Lookup(flag) != nil {
				lines = append(lines, []string{"--" + flag, ""})
			}
		}
		for _, l := range lines {
			var out shared
			vars := f.environment(nil)
			e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &shared{}, getenv: func(n string) string { return vars[n] }, now: time.Now}
			args := append(append([]string{"__complete"}, strings.Fields(path)...), l...)
			if code := run(t.Context(), e, args); code != problem.Done {
				t.Errorf("%q: exit code %d", args, code)
			}
			if bad := steered(out.String()); bad != "" {
				t.Errorf("%q: %q reaches the shell", args, bad)
			}
			seen += strings.Count(out.String(), "pwned")
		}
	}
	if seen < 20 {
		t.Errorf("only %d hostile words were offered", seen)
	}
}

// TestOnlyTheGuardedStreamsAreWrittenTo: a verb that writes to the process's own
// streams would pass the guard by. A child that inherits one guards it itself.
func TestOnlyTheGuardedStreamsAreWrittenTo(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"*.go", "internal/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			data = bytes.ReplaceAll(data, []byte("Stderr = os.Stderr"), nil)
			for _, stream := range []string{"os.Stdout", "os.Stderr", "fmt.Print"} {
				if !strings.HasSuffix(name, "_test.go") && name != "env.go" && bytes.Contains(data, []byte(stream)) {
					t.Errorf("%s uses %s; the streams of env are guarded", name, stream)
				}
			}
		}
	}
}
