package worker

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/droverhq/drover/core/job"
)

// fallbackPath is PATH for jobs of a worker that has none.
const fallbackPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// userPath is PATH for jobs of other users: the worker's own may lead into folders
// that they cannot read (login.defs(5), ENV_PATH).
const userPath = "/usr/local/bin:/usr/bin:/bin"

// baseEnviron picks what a job may see of the worker's own environment.
func baseEnviron(environ []string) map[string]string {
	base := map[string]string{"PATH": fallbackPath}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR":
			base[name] = value
		default:
			if strings.HasPrefix(name, "LC_") {
				base[name] = value
			}
		}
	}
	return base
}

// jobEnviron is the whole environment of one attempt, sorted: the allow-list of
// the worker or of the target user, what the policy let through of the request,
// and drover's own names, which nothing overrides.
func jobEnviron(base map[string]string, u *account, spec *job.Spec, own map[string]string) []string {
	all := maps.Clone(base)
	if u != nil {
		all["HOME"], all["USER"], all["LOGNAME"], all["PATH"] = u.home, u.name, u.name, searchPath(base, u)
		delete(all, "TMPDIR")
	}
	maps.Copy(all, spec.Env)
	maps.Copy(all, own)
	env := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		env = append(env, name+"="+all[name])
	}
	return env
}

// searchPath is the PATH that commands and interpreters of a job are looked up in,
// whatever PATH the request may set for the job itself.
func searchPath(base map[string]string, u *account) string {
	switch {
	case u == nil:
		return base["PATH"]
	case u.cred.UID == 0:
		return fallbackPath
	default:
		return userPath
	}
}

// ownEnviron is what drover tells a job about itself.
func ownEnviron(key job.Key, worker, mark, source, secrets string) map[string]string {
	own := map[string]string{
		"DROVER_JOB_ID":  key.Job.String(),
		"DROVER_ATTEMPT": strconv.FormatUint(uint64(key.Attempt), 10),
		"DROVER_WORKER":  worker,
		"DROVER_MARK":    mark,
	}
	if source != "" {
		own["DROVER_SCRIPT_SOURCE"] = source
	}
	if secrets != "" {
		own["DROVER_SECRETS"] = secrets
	}
	return own
}
