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
)

// JobQuery selects jobs; zero fields select all.
type JobQuery struct {
	PageSize  int
	PageToken string
	States    []job.State
	Worker    string // id, its beginning or end, or name
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
	var unknown error // the worker is; jobs may have been there before it was removed
	if q.Worker != "" {
		w, err := s.Worker(ctx, q.Worker)
		if unknown = err; err == nil {
			q.Worker = w.Name
		}
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
		id := job.ID(p.Key[1:])
		if taken == size {
			return pageToken(last), nil
		}
		if (scanned >= maxScanned || bytes >= maxScanBytes) && !sameMoment(id, last) {
			return pageToken(momentOf(last)), nil
		}
		scanned++
		bytes += len(p.Value)
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
				return pageToken(justAbove(id)), nil
			}
			taken++
		}
		last = id
	}
	if unknown != nil && taken == 0 && q.PageToken == "" {
		return "", fmt.Errorf("%s: worker_id: %w", op, unknown)
	}
	return "", nil
}

// pageToken is the token of a page that goes on below a position. That is about a job of
// the caller, or a moment: ids of other people's jobs are not told.
func pageToken(position job.ID) string { return hex.EncodeToString(position[:]) }

// justAbove is the position that has id itself below it.
func justAbove(id job.ID) job.ID {
	for i := len(id) - 1; i >= 0; i-- {
		if id[i]++; id[i] != 0 {
			break
		}
	}
	return id
}

// momentBytes of a UUIDv7 are its time in milliseconds (RFC 9562, 5.7).
const momentBytes = 6

func sameMoment(a, b job.ID) bool { return [momentBytes]byte(a[:]) == [momentBytes]byte(b[:]) }

// momentOf is the position above all ids that are older by a millisecond.
func momentOf(id job.ID) job.ID {
	clear(id[momentBytes:])
	return id
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
	if !by.sees(j) {
		return false
	}
	if len(q.States) > 0 && !slices.Contains(q.States, j.State) {
		return false
	}
	on := func(a job.Attempt) bool { return q.Worker == a.WorkerName || q.Worker == a.Worker.String() }
	if q.Worker != "" && !on(job.Attempt{Worker: j.Worker, WorkerName: j.WorkerName}) && !slices.ContainsFunc(j.Past, on) {
		return false
	}
	for k, v := range q.Labels {
		if got, ok := j.Spec.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// find finds the job that a reference means among those that the caller may see: its
// whole id, or a unique beginning or end of at least four hex digits. Jobs of others
// look as if they did not exist; DENIED would tell that they do.
func (s *Scheduler) find(ctx context.Context, op string, by Caller, ref string) (job.Job, error) {
	if id, err := uuid.Parse(ref); err == nil && len(ref) == 36 {
		j, err := s.read(ctx, op, id)
		if errs.KindOf(err) == errs.NotFound || err == nil && !by.sees(&j) {
			return job.Job{}, s.unknown(op, by, ref, hintJobs)
		}
		return j, err
	}
	digits := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	if len(digits) < job.FewestDigits || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return job.Job{}, errs.Field(op, "job_id", "JOB_REF", "%q is neither a job id nor at least %d hex digits of one", ref, job.FewestDigits)
	}
	suffix, err := s.firstTwo(ctx, op, by, bySuffix(digits), func(p store.Pair) job.ID { return job.ID(p.Value) })
	if err != nil {
		return job.Job{}, err
	}
	prefix, err := s.firstTwo(ctx, op, by, byPrefix(digits), func(p store.Pair) job.ID { return job.ID(p.Key[1:]) })
	if err != nil {
		return job.Job{}, err
	}
	found := suffix
	for _, j := range prefix {
		if !slices.ContainsFunc(found, func(f job.Job) bool { return f.ID == j.ID }) {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 0:
		return job.Job{}, s.unknown(op, by, ref, hintJobs+"; when many jobs share these digits, give more of them")
	case 1:
		return found[0], nil
	default:
		return job.Job{}, errs.Field(op, "job_id", "JOB_AMBIGUOUS", "%q fits several jobs, such as %s and %s", ref, found[0].ID, found[1].ID).
			WithHint("give more digits")
	}
}

func bySuffix(digits string) store.Range {
	reversed := []byte(digits)
	slices.Reverse(reversed)
	return store.Prefix(append([]byte{prefixSuffix}, reversed...))
}

func byPrefix(digits string) store.Range {
	low, high := digits+strings.Repeat("0", 32-len(digits)), digits+strings.Repeat("f", 32-len(digits))
	from, to := []byte{prefixJob}, []byte{prefixJob}
	from, _ = hex.AppendDecode(from, []byte(low)) // they are hex digits
	to, _ = hex.AppendDecode(to, []byte(high))
	return store.Range{From: from, To: append(to, 0), Reverse: true}
}

// Bounds of the records that one reference of a submitter reads, to pass over the jobs of
// others. The newest come first; so many share an end hardly ever, and a beginning when
// they were asked for within the same time: with more digits that is shorter.
const (
	maxFits     = 256
	maxFitBytes = 16 << 20
)

// firstTwo returns at most two jobs that the caller sees, enough to know whether one is
// unique.
func (s *Scheduler) firstTwo(ctx context.Context, op string, by Caller, r store.Range, id func(store.Pair) job.ID) ([]job.Job, error) {
	var ids []job.ID // looked at outside of the scan: it holds a snapshot
	most := maxFits
	if by.Role != roleSubmitter {
		most = 2
	}
	for p, err := range s.config.Store.Scan(ctx, r) {
		if err != nil {
			return nil, errs.E(op, errs.Internal, "STORE", err)
		}
		if ids = append(ids, id(p)); len(ids) == most {
			break
		}
	}
	var out []job.Job
	bytes := int64(0)
	for _, id := range ids {
		j, err := s.read(ctx, op, id)
		bytes += j.Spec.Bytes()
		switch {
		case errs.KindOf(err) == errs.NotFound: // removed meanwhile
		case err != nil:
			return nil, err
		case by.sees(&j):
			out = append(out, j)
		}
		if len(out) == 2 || bytes > maxFitBytes {
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
