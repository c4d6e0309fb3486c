package scripts

import (
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// longestPath is PATH_MAX: nothing longer can be opened.
const longestPath = 4096

const opPin = "find script"

// refuse is the error for a path that names something which must not run (P13).
func refuse(format string, args ...any) *errs.Error {
	return errs.Field(opPin, "path", job.ReasonPath, format, args...)
}

// missing is the error for a path that names nothing.
func missing(format string, args ...any) *errs.Error {
	return errs.Field(opPin, "path", job.ReasonScriptGone, format, args...)
}

// Check refuses paths that cannot name a script, whatever the folders hold
// (P13). It is pure; Pin applies it.
func Check(path string) error {
	switch {
	case path == "":
		return refuse("it is empty").WithHint("name a script relative to its folder, such as count.sh")
	case strings.ContainsRune(path, 0):
		return refuse("%q contains a NUL byte", path).WithHint("remove it")
	case len(path) > longestPath:
		return refuse("it has %d bytes, more than %d", len(path), longestPath).WithHint("name a script relative to its folder")
	case strings.HasPrefix(path, "/"):
		return refuse("%q is absolute", path).WithHint("name the script relative to a script folder of the worker; `drover scripts` lists them")
	case strings.HasSuffix(path, "/"):
		return refuse("%q ends with a slash, as folders do", path).WithHint("name a file")
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "":
			return refuse("%q has an empty segment", path).WithHint("write one slash between names")
		case ".", "..":
			return refuse("%q has a segment %q", path, segment).WithHint("name the script relative to its folder, without %q", segment)
		}
	}
	if !fs.ValidPath(path) {
		return refuse("%q is not valid UTF-8", path).WithHint("rename the script")
	}
	return nil
}

// readings lists what path may name below a folder: itself, and itself without
// the folder's own trailing names, so that worker/scripts/count.sh is count.sh of
// /x/worker/scripts. The literal reading comes first.
func readings(folder, path string) []string {
	list := []string{path}
	names := strings.Split(strings.Trim(filepath.ToSlash(folder), "/"), "/")
	for i := len(names) - 1; i >= 0; i-- {
		prefix := strings.Join(names[i:], "/") + "/"
		if rest, ok := strings.CutPrefix(path, prefix); ok && rest != "" {
			list = append(list, rest)
		}
	}
	return list
}
