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

// Bounds of one page, and of the records that one page looks at, in number and in
// bytes: a filter that matches little answers with a token instead of reading
// everything.
const (
	defaultPage  = 100
	maxPage      = 1000
	maxScanned   = 50_000
	maxScanBytes = 64 << 20
	minRef       = 4 // hex digits of a short job reference
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

// Jobs hands one page of jobs to take, newest first, until take has no room for one
// more, and returns the token of the next page.
func (s *Scheduler) Jobs(ctx context.Context, by Caller, q JobQuery, take func(*job.Job) bool) (next string, err error) {
	const op = "list jobs"
	if err := q.check(op); err != nil {
		return "", err
	}
	leave, err := s.turnToList(ctx, op)
	if err != nil {
		return "", err
	}
	defer leave()
	r := store.Prefix([]byte{prefixJob})
	r.Reverse = true
	if q.PageToken != "" {
		id, err := hex.DecodeString(q.PageToken)
		if err != nil || len(id) != 16 {
			return "", errs.Field(op, "page_token", "PAGE_TOKEN", "%q is not a token of an earlier page", q.PageToken)
		}
		r.To = idKey(prefixJob, [16]byte(id))
	}
	size := cmp.Or(min(q.PageSize, maxPage), defaultPage)
	taken, scanned, bytes := 0, 0, 0
	var last job.ID
	for p, err := range s.config.Store.Scan(ctx, r) {
		if err != nil {
			return "", errs.E(op, errs.Internal, "STORE", err)
		}
		if taken == size || scanned == maxScanned || bytes >= maxScanBytes {
			return hex.EncodeToString(last[:]), nil
		}
		scanned++
		bytes += len(p.Value)
		id := job.ID(p.Key[1:])
		if !q.Since.IsZero() && submitTime(id).Before(q.Since.Truncate(time.Millisecond)) {
			break // ids sort by time: all that follow are older
		}
		j, live := s.hub.job(id)
		if !live {
			stored, err := decodeJob(p.Value)
			if err != nil {
				return "", errs.E(op, errs.Internal, "STORE", err)
			}
			j = *stored
		}
		if q.matches(&j, by) {
			if !take(&j) {
				return hex.EncodeToString(last[:]), nil
			}
			taken++
		}
		last = id
	}
	return "", nil
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

// Workers hands one page of workers to take, by name, until take has no room for one
// more, and returns the token of the next page.
func (s *Scheduler) Workers(_ context.Context, labels map[string]string, pageSize int, token string, take func(*registry.Worker) bool) (next string, err error) {
	if err := checkSelector("list workers", labels); err != nil {
		return "", err
	}
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
	size := cmp.Or(min(pageSize, maxPage), defaultPage)
	for i := range all {
		if i == size || !take(&all[i]) {
			return all[max(0, i-1)].Name, nil
		}
	}
	return "", nil
}
