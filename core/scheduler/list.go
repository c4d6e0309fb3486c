package scheduler

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// Bounds of one page, and of the records that one page looks at: a filter that
// matches little answers with a token instead of reading everything.
const (
	defaultPage = 100
	maxPage     = 1000
	maxScanned  = 50_000
	minRef      = 4 // hex digits of a short job reference
)

// JobQuery selects jobs; zero fields select all.
type JobQuery struct {
	PageSize  int
	PageToken string
	States    []job.State
	Worker    string // id or name
	Labels    map[string]string
	Since     time.Time
}

// Jobs returns one page of jobs, newest first, and the token of the next.
func (s *Scheduler) Jobs(ctx context.Context, by Caller, q JobQuery) ([]job.Job, string, error) {
	const op = "list jobs"
	leave, err := s.turnToList(ctx, op)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	r := store.Prefix([]byte{prefixJob})
	r.Reverse = true
	if q.PageToken != "" {
		id, err := hex.DecodeString(q.PageToken)
		if err != nil || len(id) != 16 {
			return nil, "", errs.Field(op, "page_token", "PAGE_TOKEN", "%q is not a token of an earlier page", q.PageToken)
		}
		r.To = idKey(prefixJob, [16]byte(id))
	}
	size := cmp.Or(min(q.PageSize, maxPage), defaultPage)
	var (
		out     []job.Job
		scanned int
		last    job.ID
	)
	for p, err := range s.config.Store.Scan(ctx, r) {
		if err != nil {
			return nil, "", errs.E(op, errs.Internal, "STORE", err)
		}
		if len(out) == size || scanned == maxScanned {
			return out, hex.EncodeToString(last[:]), nil
		}
		scanned++
		last = job.ID(p.Key[1:])
		if !q.Since.IsZero() && submitTime(last).Before(q.Since.Truncate(time.Millisecond)) {
			break // ids sort by time: all that follow are older
		}
		j, live := s.hub.job(last)
		if !live {
			stored, err := decodeJob(p.Value)
			if err != nil {
				return nil, "", errs.E(op, errs.Internal, "STORE", err)
			}
			j = *stored
		}
		if q.matches(&j, by) {
			out = append(out, j)
		}
	}
	return out, "", nil
}

// turnToList waits until a list may be read, unless too many wait. Lists take
// much of a processor: as many at once as there are, or heartbeats would wait (P16).
func (s *Scheduler) turnToList(ctx context.Context, op string) (leave func(), err error) {
	select {
	case s.lists <- struct{}{}:
	default:
		return nil, overloaded(op, "too many lists are being read")
	}
	leave = func() { <-s.listing; <-s.lists }
	select {
	case s.listing <- struct{}{}:
		return leave, nil
	default:
	}
	select {
	case s.listing <- struct{}{}:
		return leave, nil
	case <-ctx.Done():
		<-s.lists
		return nil, errs.E(op, errs.Canceled, "", ctx.Err())
	}
}

// submitTime reads the milliseconds of a UUIDv7 (RFC 9562, 5.7).
func submitTime(id job.ID) time.Time {
	sec, nsec := id.Time().UnixTime()
	return time.Unix(sec, nsec)
}

func (q *JobQuery) matches(j *job.Job, by Caller) bool {
	if by.Role == roleSubmitter && j.RequestedBy != by.Name {
		return false
	}
	if len(q.States) > 0 && !slices.Contains(q.States, j.State) {
		return false
	}
	if q.Worker != "" && q.Worker != j.WorkerName && q.Worker != j.Worker.String() {
		return false
	}
	for k, v := range q.Labels {
		if got, ok := j.Spec.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// resolve finds a job by its whole id, or by a unique beginning or end of at
// least four hex digits.
func (s *Scheduler) resolve(ctx context.Context, op, ref string) (job.ID, error) {
	if id, err := uuid.Parse(ref); err == nil && len(ref) == 36 {
		return id, nil
	}
	digits := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	if len(digits) < minRef || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return job.ID{}, errs.Field(op, "job_id", "JOB_REF", "%q is neither a job id nor at least %d hex digits of one", ref, minRef)
	}
	var found []job.ID
	for _, look := range []func(context.Context, string) ([]job.ID, error){s.bySuffix, s.byPrefix} {
		ids, err := look(ctx, digits)
		if err != nil {
			return job.ID{}, errs.E(op, errs.Internal, "STORE", err)
		}
		for _, id := range ids {
			if !slices.Contains(found, id) {
				found = append(found, id)
			}
		}
	}
	switch len(found) {
	case 0:
		return job.ID{}, jobUnknown(op, ref)
	case 1:
		return found[0], nil
	default:
		return job.ID{}, errs.Field(op, "job_id", "JOB_AMBIGUOUS", "%q fits several jobs, such as %s and %s", ref, found[0], found[1]).
			WithHint("give more digits")
	}
}

// bySuffix looks up at most two, enough to know whether one is unique.
func (s *Scheduler) bySuffix(ctx context.Context, digits string) ([]job.ID, error) {
	reversed := []byte(digits)
	slices.Reverse(reversed)
	return s.firstTwo(ctx, store.Prefix(append([]byte{prefixSuffix}, reversed...)), func(p store.Pair) job.ID { return job.ID(p.Value) })
}

func (s *Scheduler) byPrefix(ctx context.Context, digits string) ([]job.ID, error) {
	low, err := hex.DecodeString(digits + strings.Repeat("0", 32-len(digits)))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", digits, err)
	}
	high, err := hex.DecodeString(digits + strings.Repeat("f", 32-len(digits)))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", digits, err)
	}
	r := store.Range{From: idKey(prefixJob, [16]byte(low)), To: append(idKey(prefixJob, [16]byte(high)), 0)}
	return s.firstTwo(ctx, r, func(p store.Pair) job.ID { return job.ID(p.Key[1:]) })
}

func (s *Scheduler) firstTwo(ctx context.Context, r store.Range, id func(store.Pair) job.ID) ([]job.ID, error) {
	var out []job.ID
	for p, err := range s.config.Store.Scan(ctx, r) {
		if err != nil {
			return nil, err
		}
		out = append(out, id(p))
		if len(out) == 2 {
			break
		}
	}
	return out, nil
}

// Workers returns one page of workers by name, and the token of the next.
func (s *Scheduler) Workers(_ context.Context, labels map[string]string, pageSize int, token string) ([]registry.Worker, string, error) {
	all := s.hub.allWorkers()
	all = slices.DeleteFunc(all, func(w registry.Worker) bool {
		for k, v := range labels {
			if got, ok := w.Labels[k]; !ok || got != v {
				return true
			}
		}
		return w.Name <= token
	})
	slices.SortFunc(all, func(a, b registry.Worker) int { return cmp.Compare(a.Name, b.Name) })
	if size := cmp.Or(min(pageSize, maxPage), defaultPage); len(all) > size {
		return all[:size], all[size-1].Name, nil
	}
	return all, "", nil
}

// Script is one version of a script and who has it.
type Script struct {
	job.ScriptInfo
	Workers []job.WorkerID
}

// Scripts lists what the workers publish, by path, folder and version.
func (s *Scheduler) Scripts(ctx context.Context, workerRef string, pageSize int, token string) ([]Script, string, error) {
	workers := s.hub.allWorkers()
	if workerRef != "" {
		w, err := s.Worker(ctx, workerRef)
		if err != nil {
			return nil, "", err
		}
		workers = []registry.Worker{w}
	}
	byKey := map[string]*Script{}
	for _, w := range workers {
		if w.State == registry.Deregistered {
			continue
		}
		for _, info := range w.Scripts.Scripts {
			key := info.Path + "\x00" + info.Folder + "\x00" + info.SHA256
			if byKey[key] == nil {
				byKey[key] = &Script{ScriptInfo: info}
			}
			byKey[key].Workers = append(byKey[key].Workers, w.ID)
		}
	}
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		if k > token {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	size := cmp.Or(min(pageSize, maxPage), defaultPage)
	next := ""
	if len(keys) > size {
		keys = keys[:size]
		next = keys[size-1]
	}
	out := make([]Script, len(keys))
	for i, k := range keys {
		out[i] = *byKey[k]
	}
	return out, next, nil
}
