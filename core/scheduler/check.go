package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// CheckStore reads all records of a store that a scheduler has used. One that none
// has used is Precondition, reason STORE_EMPTY; a record that cannot be read, or
// that is missing, is STORE_DAMAGED.
func CheckStore(ctx context.Context, st store.Store) error {
	const op = "check the store"
	switch term, err := store.Term(ctx, st); {
	case err != nil:
		return storeError(op, err)
	case term == 0:
		return errs.E(op, errs.Precondition, "STORE_EMPTY", errors.New("no scheduler has ever used it")).
			WithHint("is it the right folder, database and prefix?")
	}
	live := map[job.ID]bool{}
	for p, err := range st.Scan(ctx, store.Prefix([]byte{prefixLive})) {
		if err != nil {
			return storeError(op, err)
		}
		if len(p.Key) != 17 {
			return damagedRecord(op, p.Key, errors.New("its key is too short or too long"))
		}
		live[job.ID(p.Key[1:])] = true
	}
	for p, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return storeError(op, err)
		}
		if err := checkRecord(p); err != nil {
			return damagedRecord(op, p.Key, err)
		}
		if p.Key[0] == prefixJob {
			delete(live, job.ID(p.Key[1:]))
		}
	}
	for id := range live {
		return damagedRecord(op, idKey(prefixJob, id), errors.New("it is missing, and its job is not at its end"))
	}
	return nil
}

func damagedRecord(op string, key []byte, why error) error {
	return errs.E(op, errs.Precondition, "STORE_DAMAGED", fmt.Errorf("the record %q is damaged: %w", key, why)).
		WithHint("restore a backup")
}

// checkRecord reads one record. What a later version has added is left alone.
func checkRecord(p store.Pair) error {
	if len(p.Key) == 0 {
		return errors.New("it has no key")
	}
	switch p.Key[0] {
	case prefixJob:
		j, err := decodeJob(p.Value)
		if err != nil {
			return err
		}
		if len(p.Key) != 17 || j.ID != job.ID(p.Key[1:]) {
			return errors.New("it is of another job than its key says")
		}
	case prefixWorker:
		var w registry.Worker
		if err := json.Unmarshal(p.Value, &w); err != nil {
			return fmt.Errorf("decode a worker: %w", err)
		}
	case prefixInput:
		if _, err := decodeInput(p.Value); err != nil {
			return err
		}
	case prefixRequest:
		if _, err := decodeAccepted(p.Value); err != nil {
			return err
		}
	}
	return nil
}
