package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/store/backup"
)

// RestoreOptions say what backup goes where.
type RestoreOptions struct {
	File  string
	Store string // as of the scheduler
	Data  string
	Term  uint64 // of the next life; 0: the one after the backup's

	Getenv func(string) string // for the password of the store
}

// Restore fills an empty store from a backup and returns how many records it
// has.
func Restore(ctx context.Context, o RestoreOptions, log *slog.Logger) (records uint64, err error) {
	f, err := os.Open(o.File)
	if err != nil {
		return 0, fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	if err := dataFolder(o.Data); err != nil {
		return 0, err
	}
	st, err := openStore(ctx, o.Store, o.Data, o.Getenv, log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if records, err = backup.Load(ctx, f, st); err != nil {
		return records, err
	}
	if o.Term > 0 {
		if err := scheduler.SetTerm(ctx, st, o.Term); err != nil {
			return records, err
		}
	}
	return records, fresh(ctx, st)
}
