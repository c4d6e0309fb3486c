package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/embedded"
	"github.com/droverhq/drover/core/store/memory"
	"github.com/droverhq/drover/core/store/redis"
)

// storeFolder in the data folder holds the records of the embedded engine.
const storeFolder = "store"

// seenFile in the data folder keeps how new a store in Redis was.
const seenFile = "store-seen.json"

// openStore opens the store that a setting names, and tells loudly what may cost
// records.
func openStore(ctx context.Context, setting, data string, getenv func(string) string, log *slog.Logger) (store.Store, error) {
	switch {
	case setting == "" || setting == "embedded":
		return embedded.Open(filepath.Join(data, storeFolder), log)
	case setting == "memory:":
		return memory.New(), nil
	case redis.IsURL(setting):
		return openRedis(ctx, setting, "", getenv, log)
	default:
		scheme, _, _ := strings.Cut(setting, ":")
		return nil, errs.Field("open the store", "store", "STORE_UNKNOWN", "%q is none of embedded, memory:, redis://, rediss://, redis+unix://", scheme)
	}
}

// openRedis opens the store for a scheduler, whose file seen keeps how new the store
// was, or with "" for a verb.
func openRedis(ctx context.Context, url, seen string, getenv func(string) string, log *slog.Logger) (*redis.Store, error) {
	c, err := redis.ParseURL(url, getenv)
	if err != nil {
		return nil, err
	}
	c.Log, c.Seen, c.Await = log, seen, seen != ""
	st, err := redis.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, w := range st.Warnings() {
		log.Error("the store may lose records", "store", redis.Redact(url), "why", w)
	}
	return st, nil
}

// ShownStore is a setting of a store as it may be shown: without a password.
func ShownStore(setting string) string { return redis.Redact(setting) }

// CopyStore copies all records between two places, each the data folder of a
// scheduler or a URL, and returns how many they were. The target must be empty.
func CopyStore(ctx context.Context, from, to string, getenv func(string) string, log *slog.Logger) (records uint64, err error) {
	if !isURL(from) {
		// Opening would make one that is not there.
		if _, err := os.Stat(filepath.Join(from, storeFolder)); err != nil {
			return 0, noStore(from, err)
		}
	}
	source, err := openPlace(ctx, from, getenv, log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	writes, err := atRest(ctx, source)
	if err != nil {
		return 0, err
	}
	if err := scheduler.CheckStore(ctx, source); err != nil {
		return 0, err
	}
	target, err := openPlace(ctx, to, getenv, log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if records, err = backup.Copy(ctx, source, target); err != nil {
		return records, err
	}
	if now, err := atRest(ctx, source); err != nil || now != writes {
		return records, errs.E("copy the store", errs.Precondition, "STORE_IN_USE", errors.Join(errors.New("it was changed while it was copied"), err)).
			WithHint("end the scheduler, empty the copy, and copy again")
	}
	return records, fresh(ctx, target)
}

// atRest makes sure that nobody uses a store in Redis; a folder is locked.
func atRest(ctx context.Context, st store.Store) (writes uint64, err error) {
	if r, ok := st.(*redis.Store); ok {
		return r.AtRest(ctx)
	}
	return 0, nil
}

// fresh makes schedulers that have seen another state of a Redis go on with the
// one that was just put there.
func fresh(ctx context.Context, st store.Store) error {
	if r, ok := st.(*redis.Store); ok {
		return r.Accept(ctx, 0, false)
	}
	return nil
}

// isURL tells a URL, also one that is written wrong, from a folder.
func isURL(place string) bool {
	scheme, _, ok := strings.Cut(place, ":/")
	return ok && !strings.ContainsAny(scheme, "/.")
}

// acceptedTerms is by how many terms an accepted store may be older than what
// workers have seen: each start of a scheduler and each takeover is one.
const acceptedTerms = 1000

// AcceptStore makes records that are an older copy, or have lost writes, the ones to go on
// with; place is a data folder or a URL. With newCA they become those of a cluster whose
// CA was made anew.
func AcceptStore(ctx context.Context, place string, newCA bool, getenv func(string) string, log *slog.Logger) (err error) {
	if !isURL(place) {
		return acceptFolder(ctx, place, newCA, log)
	}
	st, err := openRedis(ctx, place, "", getenv, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := st.Accept(ctx, acceptedTerms, newCA); err != nil {
		return err
	}
	term, err := store.Term(ctx, st)
	if err != nil {
		return err
	}
	// What workers were told by the records that are lost is overruled (P3).
	return scheduler.SetTerm(ctx, st, term+1)
}

func acceptFolder(ctx context.Context, data string, newCA bool, log *slog.Logger) (err error) {
	if newCA {
		return errs.Field("accept the store", "--new-ca", "USAGE", "a data folder does not name its cluster, only a Redis does")
	}
	if _, err := os.Stat(filepath.Join(data, storeFolder)); err != nil { // opening would make one that is not there
		return noStore(data, err)
	}
	st, err := openPlace(ctx, data, nil, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := scheduler.CheckStore(ctx, st); err != nil {
		return err
	}
	term, err := store.Term(ctx, st)
	if err != nil {
		return err
	}
	return scheduler.SetTerm(ctx, st, term+acceptedTerms)
}

func openPlace(ctx context.Context, place string, getenv func(string) string, log *slog.Logger) (store.Store, error) {
	if isURL(place) {
		if !strings.Contains(place, "://") {
			_, err := redis.ParseURL(place, getenv)
			return nil, err
		}
		return openStore(ctx, place, "", getenv, log)
	}
	if err := dataFolder(place); err != nil {
		return nil, err
	}
	return openStore(ctx, "", place, getenv, log)
}

// SalvageStore ends the damaged log of a data folder where it can be read, and
// returns what that costs and how many records are left.
func SalvageStore(ctx context.Context, data string, log *slog.Logger) (done embedded.Salvaged, records uint64, err error) {
	folder := filepath.Join(data, storeFolder)
	if _, err := os.Stat(folder); err != nil { // opening would make one that is not there
		return done, 0, noStore(data, err)
	}
	if done, err = embedded.Salvage(folder, log); err != nil {
		return done, 0, err
	}
	st, err := embedded.Open(folder, log)
	if err != nil {
		return done, 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	for _, err := range st.Scan(ctx, store.Range{}) {
		if err != nil {
			return done, records, fmt.Errorf("count what is left: %w", err)
		}
		records++
	}
	return done, records, nil
}

func noStore(data string, err error) error {
	return errs.E("open the store", errs.NotFound, "STORE_FOLDER", fmt.Errorf("%s is no data folder of a scheduler: %w", data, err))
}
