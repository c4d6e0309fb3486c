package embedded

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/errs"
)

// Salvaged says what Salvage has left out.
type Salvaged struct {
	Lost uint64 // bytes of acknowledged records, as far as is known
	Kept string // the file with what was left out; "" when it was missing
}

// Salvage makes a store whose log is damaged at its end usable again, without what
// was behind the damage. The damaged log is kept under another name. A store that
// is not damaged is left alone: Precondition, reason STORE_SOUND.
func Salvage(dir string, log *slog.Logger) (Salvaged, error) {
	return salvage(dir, log, vfs.Default)
}

func salvage(dir string, log *slog.Logger, fs vfs.FS) (done Salvaged, err error) {
	const op = "salvage the store"
	lock, err := lockStore(dir, fs)
	if err != nil {
		return Salvaged{}, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	w, err := openWitness(dir, fs, log)
	if err != nil {
		return Salvaged{}, errs.E(op, errs.Precondition, "STORE_FOLDER", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	d, err := examine(dir, fs, w.last)
	if err != nil {
		return Salvaged{}, errs.E(op, errs.Internal, "STORE", err)
	}
	if d == nil {
		return Salvaged{}, errs.E(op, errs.Precondition, "STORE_SOUND", fmt.Errorf("nothing is missing at the end of the log in %s", dir)).
			WithHint("when it does not open all the same, restore a backup")
	}
	done.Lost = d.lost
	if !d.gone {
		if done.Kept, err = cut(dir, fs, d); err != nil {
			return Salvaged{}, errs.E(op, errs.Internal, "STORE", err)
		}
	}
	// From here on the store is what it is.
	if err := writeFile(fs.PathJoin(dir, witnessFile), make([]byte, slotApart+slotBytes), fs); err != nil {
		return Salvaged{}, errs.E(op, errs.Internal, "STORE", err)
	}
	return done, nil
}

// cut ends a log where it is damaged. Logs behind it would follow a hole.
func cut(dir string, fs vfs.FS, d *damage) (kept string, err error) {
	b, err := readFile(d.path, fs)
	if err != nil {
		return "", err
	}
	logs, err := logsOf(dir, fs)
	if err != nil {
		return "", err
	}
	for _, n := range logs {
		if n > d.log {
			if _, err := aside(dir, fs, n); err != nil {
				return "", err
			}
		}
	}
	if kept, err = aside(dir, fs, d.log); err != nil {
		return "", err
	}
	return kept, writeFile(d.path, b[:d.good], fs)
}

// aside gives a log a name that Pebble does not know.
func aside(dir string, fs vfs.FS, log uint64) (string, error) {
	to := fs.PathJoin(dir, fmt.Sprintf("damaged-%06d%s", log, logSuffix))
	return to, fs.Rename(logPath(dir, fs, log), to)
}
