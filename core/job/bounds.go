package job

import (
	"fmt"
	"unicode/utf8"
)

// Bounds of what a request brings along, in bytes unless it says otherwise. Together
// they keep an order far below the largest message.
const (
	MaxStdin       = 1 << 20
	MaxUpload      = 1 << 20
	MaxSecrets     = 64      // in number
	MaxSecretBytes = 1 << 20 // names and values together
	MaxName        = 255     // of a secret, a worker, a user: NAME_MAX
	MaxPath        = 4095    // PATH_MAX without the NUL at its end
)

// Bounds of what a worker tells about itself. A worker keeps them; a scheduler does
// not rely on that.
const (
	MaxMessage       = 2 << 10 // bytes of a text for users
	MaxCode          = 128     // bytes of a reason, a version, the type of a condition
	MaxConditions    = 64
	MaxRunners       = 64
	MaxCommands      = 1024     // of a worker's policy
	MaxCommandsBytes = 64 << 10 // of a policy's together
	MaxScripts       = 250_000  // that a worker lists
	MaxScriptsBytes  = 64 << 20 // of the texts of its list
	maxRunnerBytes   = 1 << 10  // of one runner's together
)

// Shorten cuts a text to at most that many bytes, not within a character, and ends
// what it has cut with "...".
func Shorten(s string, most int) string {
	const mark = "..."
	if len(s) <= most {
		return s
	}
	end := max(0, most-len(mark))
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// Bound shortens the texts of a report.
func (r *Report) Bound() {
	r.Message = Shorten(r.Message, MaxMessage)
	for _, s := range []*string{&r.Reason, &r.Signal, &r.Stdout.SHA256, &r.Stderr.SHA256, &r.ScriptSHA256, &r.Runner, &r.RunnerVersion} {
		*s = Shorten(*s, MaxCode)
	}
	if r.StopProof != nil && len(r.StopProof.Method) > MaxCode {
		proof := *r.StopProof
		proof.Method = Shorten(proof.Method, MaxCode)
		r.StopProof = &proof
	}
}

// BoundConditions shortens a list of conditions and their texts. The list that is
// handed in stays as it is.
func BoundConditions(all []Condition) []Condition {
	out := make([]Condition, min(len(all), MaxConditions))
	for i := range out {
		c := all[i]
		out[i] = Condition{Type: Shorten(c.Type, MaxCode), Message: Shorten(c.Message, MaxMessage), Since: c.Since}
	}
	return out
}

// BoundRunners shortens a list of runners, their commands and their texts. The list
// that is handed in stays as it is. It is never nil.
func BoundRunners(all []RunnerInfo) []RunnerInfo {
	out := make([]RunnerInfo, min(len(all), MaxRunners))
	for i := range out {
		r := all[i]
		out[i] = RunnerInfo{
			Name: Shorten(r.Name, MaxCode), Version: Shorten(r.Version, MaxCode), SHA256: Shorten(r.SHA256, MaxCode),
			State: Shorten(r.State, MaxCode), Jobs: r.Jobs, Commands: boundCommands(r.Commands), Message: Shorten(r.Message, MaxMessage),
		}
	}
	return out
}

// boundCommands keeps the first of a runner's commands, as many as have room.
func boundCommands(all []string) []string {
	n := 0
	for size := 0; n < len(all); n++ {
		if size += len(all[n]) + 1; size > maxRunnerBytes {
			break
		}
	}
	return all[:n]
}

// CheckRunner refuses what a runner says of itself when a worker could not tell it.
func CheckRunner(name, version string, commands []string) error {
	switch {
	case len(name) > MaxCode:
		return fmt.Errorf("its name has %d bytes, at most %d", len(name), MaxCode)
	case len(version) > MaxCode:
		return fmt.Errorf("its version has %d bytes, at most %d", len(version), MaxCode)
	case len(boundCommands(commands)) < len(commands):
		return fmt.Errorf("the names of its %d commands have more than %d bytes", len(commands), maxRunnerBytes)
	default:
		return nil
	}
}

// CheckCommands refuses a list of commands that is out of bounds.
func CheckCommands(all []string) error {
	size := 0
	for _, c := range all {
		size += len(c)
	}
	switch {
	case len(all) > MaxCommands:
		return fmt.Errorf("%d commands, at most %d", len(all), MaxCommands)
	case size > MaxCommandsBytes:
		return fmt.Errorf("the commands have %d bytes together, at most %d", size, MaxCommandsBytes)
	default:
		return nil
	}
}
