package certs

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// pollInterval bounds how long a new pair or a revocation stays unseen.
	pollInterval = 2 * time.Second
	// settleTime lets several files that are copied one by one all arrive.
	settleTime = 100 * time.Millisecond
)

// Run follows the folder until ctx ends. File events are only a hint that makes
// it quick: every two seconds it looks anyway, so that a revocation takes
// effect within 5 s also where events are missing.
func (s *Source) Run(ctx context.Context) error {
	s.setSpare(true)
	defer s.setSpare(false)
	events, failures, stop := s.hints()
	defer stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			if settled == nil { // not pushed further away: a busy folder must not delay for ever
				settled = time.After(settleTime)
			}
		case <-failures: //nolint:errcheck // events were lost; the next tick looks
		case <-settled:
			settled = nil
			s.Reload()
		case <-tick.C:
			s.Reload()
		}
	}
}

// setSpare opens or closes the spare descriptor.
func (s *Source) setSpare(open bool) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.spares = open
	s.keepSpare()
	if !open && s.spare != nil {
		s.spare.Close()
		s.spare = nil
	}
}

// hints watches the folders of the files. A host may have run out of watches.
func (s *Source) hints() (<-chan fsnotify.Event, <-chan error, func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Info("certificates are looked at every two seconds only", "folder", s.dir, "error", err)
		return nil, nil, func() {}
	}
	folders := []string{s.dir}
	for _, f := range s.revoked {
		folders = append(folders, filepath.Dir(f))
	}
	slices.Sort(folders)
	for _, dir := range slices.Compact(folders) {
		if err := w.Add(dir); err != nil {
			s.log.Info("certificates are looked at every two seconds only", "folder", dir, "error", err)
		}
	}
	return w.Events, w.Errors, func() { _ = w.Close() } // inotify: never fails
}
