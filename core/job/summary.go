package job

import (
	"maps"
	"slices"
)

// MaxSummary is about how many bytes of arguments, environment and names of secrets
// a summary carries.
const MaxSummary = 4 << 10

// Summary returns the job as lists and watches carry it, with what is long cut.
func (j *Job) Summary() Job {
	room := summarizer{room: MaxSummary}
	c := *j
	s := &c.Spec
	for _, text := range []*string{&s.Worker, &s.Path, &s.Command, &s.Workdir, &s.User, &s.Name} {
		room.shorten(text, MaxPath)
	}
	room.shorten(&c.Message, MaxMessage)
	s.Args = room.list(s.Args)
	s.Env = fill(&room, s.Env, func(k, v string) int { return len(k) + len(v) })
	s.Secrets = fill(&room, s.Secrets, func(name string, _ []byte) int { return len(name) })
	s.Labels = fill(&room, s.Labels, func(k, v string) int { return len(k) + len(v) })
	if most := MaxSummary / 16; len(s.Retry.ExitCodes) > most {
		s.Retry.ExitCodes, room.cut = s.Retry.ExitCodes[:most], true
	}
	c.Past = nil // which may be many; one job that is asked for has them
	c.Result.Bound()
	c.Truncated = c.Truncated || room.cut
	return c
}

// summarizer hands out the room of a summary.
type summarizer struct {
	room int
	cut  bool
}

// perItem is what an item costs besides its bytes.
const perItem = 4

func (r *summarizer) shorten(text *string, most int) {
	if len(*text) > most {
		*text, r.cut = Shorten(*text, most), true
	}
}

// list keeps the first items, the last of them perhaps shortened.
func (r *summarizer) list(all []string) []string {
	for i, item := range all {
		if r.room -= len(item) + perItem; r.room >= 0 {
			continue
		}
		out := slices.Clone(all[:i])
		if left := r.room + len(item); left > 0 {
			out = append(out, Shorten(item, left))
		}
		r.room, r.cut = 0, true
		return out
	}
	return all
}

// fill keeps the first entries of a map by key.
func fill[V any](r *summarizer, all map[string]V, size func(string, V) int) map[string]V {
	total := 0
	for k, v := range all {
		total += size(k, v) + perItem
	}
	if total <= r.room {
		r.room -= total
		return all
	}
	out := map[string]V{}
	r.cut = true
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if r.room -= size(k, all[k]) + perItem; r.room < 0 {
			r.room = 0
			break
		}
		out[k] = all[k]
	}
	return out
}
