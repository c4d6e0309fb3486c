package scheduler

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Script is one version of a script and who has it.
type Script struct {
	job.ScriptInfo
	Workers []job.WorkerID
}

// Scripts hands one page of what the workers publish to take, by path, folder and
// version, until take has no room for one more, and returns the token of the next page.
func (s *Scheduler) Scripts(ctx context.Context, workerRef string, pageSize int, token string, take func(*Script) bool) (next string, err error) {
	leave, err := s.turnToList(ctx, "list scripts")
	if err != nil {
		return "", err
	}
	defer leave()
	workers := s.hub.allWorkers()
	if workerRef != "" {
		w, err := s.Worker(ctx, workerRef)
		if err != nil {
			return "", err
		}
		workers = []registry.Worker{w}
	}
	size := cmp.Or(min(pageSize, maxPage), defaultPage)
	found := selection{after: scriptOf(token), most: size + 1}
	for i := range workers {
		if w := &workers[i]; w.State != registry.Deregistered {
			for k := range w.Scripts.Scripts {
				found.add(offer{&w.Scripts.Scripts[k], w.ID})
			}
		}
	}
	for i, script := range found.scripts() {
		if i == size || !take(&script) {
			return next, nil
		}
		next = tokenOf(&script.ScriptInfo)
	}
	return "", nil
}

// A token holds the script after which the page begins.
func tokenOf(s *job.ScriptInfo) string { return s.Path + "\x00" + s.Folder + "\x00" + s.SHA256 }

func scriptOf(token string) job.ScriptInfo {
	path, rest, _ := strings.Cut(token, "\x00")
	folder, sum, _ := strings.Cut(rest, "\x00")
	return job.ScriptInfo{Path: path, Folder: folder, SHA256: sum}
}

func compareScripts(a, b *job.ScriptInfo) int {
	return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Folder, b.Folder), strings.Compare(a.SHA256, b.SHA256))
}

// offer is one version of a script at one worker.
type offer struct {
	info   *job.ScriptInfo
	worker job.WorkerID
}

// selection finds the first scripts after one of them, among far more: it looks at
// each offer once, and sorts few.
type selection struct {
	after  job.ScriptInfo
	most   int // different scripts that are wanted
	offers []offer
	limit  int             // when there are so many offers, they're thinned out
	last   *job.ScriptInfo // what comes later is not wanted; nil: not known yet
}

func (s *selection) add(o offer) {
	if compareScripts(o.info, &s.after) <= 0 || s.last != nil && compareScripts(o.info, s.last) > 0 {
		return
	}
	if s.offers = append(s.offers, o); len(s.offers) > s.limit {
		s.thin()
		s.limit = 2*len(s.offers) + 4*s.most
	}
}

// thin sorts the offers and drops those of scripts that are too many.
func (s *selection) thin() {
	slices.SortFunc(s.offers, func(a, b offer) int {
		return cmp.Or(compareScripts(a.info, b.info), slices.Compare(a.worker[:], b.worker[:]))
	})
	different := 0
	for i := range s.offers {
		if i > 0 && compareScripts(s.offers[i].info, s.offers[i-1].info) == 0 {
			continue
		}
		if different++; different > s.most {
			s.offers, s.last = s.offers[:i], s.offers[i-1].info
			return
		}
	}
}

// scripts returns what was found, with all the workers that offer each.
func (s *selection) scripts() []Script {
	s.thin()
	var out []Script
	for i, o := range s.offers {
		if i == 0 || compareScripts(o.info, s.offers[i-1].info) != 0 {
			out = append(out, Script{ScriptInfo: *o.info})
		}
		last := &out[len(out)-1]
		last.Workers = append(last.Workers, o.worker)
	}
	return out
}
