package runnertest

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// behaviours are what the suite asks jobs to do: the name of the script and
// its text. The Fake goes by the name.
var behaviours = map[string]string{
	"args":     `for a in "$@"; do printf '%s\0' "$a"; done`,
	"environ":  `cat "/proc/$$/environ"; exit 0`,
	"exit":     `exit "$1"`,
	"kill":     `kill -"$1" $$`,
	"cat":      `cat`,
	"cwd":      `readlink "/proc/$$/cwd"`,
	"sleep":    `exec sleep 1000`,
	"stubborn": `trap '' TERM; echo ready; exec sleep 1000`,
	"handled":  `sleep 1000 & trap 'kill $!; echo TERM; exit 3' TERM; echo ready; wait`,
	"copy":     `cat "$1"; cat "$2" >&2`,
	"closed":   `echo said; exec 1>&- 2>&-; exec sleep 1000`,
	"reopen":   `echo a > /dev/stdout; echo b > /dev/stderr; echo c >> /dev/stdout; echo d > /proc/self/fd/1`,
	// One child in a session of its own, one forked twice, both deaf to TERM.
	"family": `trap '' TERM HUP
setsid sh -c 'echo $$; exec sleep 1000' &
( (sh -c 'echo $$; exec sleep 1000') & )
read x < "$1"`,
	"stat":        `cat "/proc/$$/stat"`,
	"status":      `cat "/proc/$$/status"`,
	"birth":       `grep -E '^(SigIgn|SigBlk|Umask):' /proc/self/status; echo "oom $(cat /proc/self/oom_score_adj)"`,
	"limits":      `cat "/proc/$$/limits"`,
	"descriptors": `for f in /proc/$$/fd/*; do readlink "$f"; done; exit 0`,
}

// Python wraps a shell script for a runner of Python 3: the process becomes a
// shell with the arguments and the environment that it was started with, not
// with those that Python makes of them (PEP 538 adds LC_CTYPE).
func Python(shell string) string {
	return `import os, signal, sys
for s in signal.SIGPIPE, signal.SIGXFSZ: # which Python ignores
    signal.signal(s, signal.SIG_DFL)
given = open("/proc/self/environ", "rb").read().split(b"\0")
environ = dict(kv.split(b"=", 1) for kv in given if kv)
os.execve("/bin/bash", [b"bash", b"-c", ` + pythonBytes(shell) + `, b"script"] + [os.fsencode(a) for a in sys.argv[1:]], environ)
`
}

// PythonPath is the folder of the interpreter itself: a python3 in PATH may be a
// shim that sets variables of its own.
func PythonPath(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("python3", "-c", "import os, sys; print(os.path.dirname(sys.executable))").Output()
	if err != nil {
		t.Fatalf("python3 is needed: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// pythonBytes is a bytes literal.
func pythonBytes(s string) string {
	var b strings.Builder
	b.WriteString(`b"`)
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	b.WriteString(`"`)
	return b.String()
}
