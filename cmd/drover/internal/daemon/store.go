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
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/embedded"
	"github.com/droverhq/drover/core/store/memory"
	"github.com/droverhq/drover/core/store/redis"
)

// storeFolder in the data folder holds the records of the embedded engine.
const storeFolder = "store"

// openStore opens the store that a setting names, and tells loudly what may cost
// records.
func openStore(ctx context.Context, setting, data string, getenv func(string) string, log *slog.Logger) (store.Store, error) {
	switch {
	case setting == "" || setting == "embedded":
		return embedded.Open(filepath.Join(data, storeFolder), log)
	case setting == "memory:":
		return memory.New(), nil
	case redis.IsURL(setting):
		return openRedis(ctx, setting, getenv, log)
	default:
		scheme, _, _ := strings.Cut(setting, ":")
		return nil, errs.Field("open the store", "store", "STORE_UNKNOWN", "%q is none of embedded, memory:, redis://, rediss://, redis+unix://", scheme)
	}
}

func openRedis(ctx context.Context, url string, getenv func(string) string, log *slog.Logger) (*redis.Store, error) {
	c, err := redis.ParseURL(url, getenv)
	if err != nil {
		return nil, err
	}
	c.Log = log
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
	if !strings.Contains(from, "://") {
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
	target, err := openPlace(ctx, to, getenv, log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	return backup.Copy(ctx, source, target)
}

func openPlace(ctx context.Context, place string, getenv func(string) string, log *slog.Logger) (store.Store, error) {
	if strings.Contains(place, "://") {
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
