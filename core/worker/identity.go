package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/failpoint"
)

// identity is the id that a scheduler gave this worker, kept in a file with the
// name it was given to: a data folder belongs to one worker.
type identity struct {
	file string
	name string

	mu sync.Mutex // guards id
	id job.WorkerID
}

type identityFile struct {
	WorkerID uuid.UUID `json:"worker_id"`
	Name     string    `json:"name"`
}

// openIdentity reads the file; a missing one is a worker that was never
// registered.
func openIdentity(file, name string, log *slog.Logger) (*identity, error) {
	const op = "read worker identity"
	x := &identity{file: file, name: name}
	var f identityFile
	damage, err := durable.ReadTwice(file, func(data []byte) error {
		f = identityFile{}
		if err := json.Unmarshal(data, &f); err != nil {
			return fmt.Errorf("parse it: %w", err)
		}
		if f.WorkerID == uuid.Nil {
			return errors.New("it has no worker_id")
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, errs.E(op, errs.Internal, "DATA_FOLDER", err).
			WithHint("remove the worker with \"drover workers rm\" and start it with an empty --data folder, or restore the file: {\"worker_id\": ID, \"name\": NAME}")
	}
	if damage != nil {
		log.Warn("the file of the worker's id was damaged and is written again from its second copy", "path", file, "err", damage)
	}
	if f.Name != name {
		return nil, errs.E(op, errs.Precondition, "WORKER_RENAMED",
			fmt.Errorf("data folder %s belongs to worker %q, not to %q", filepath.Dir(file), f.Name, name)).
			WithHint("give each worker its own --data folder, or use the old --name")
	}
	x.id = f.WorkerID
	return x, nil
}

func (x *identity) get() (job.WorkerID, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.id, x.id != job.WorkerID{}
}

// set keeps an id, on disk first. Only the membership loop calls it.
func (x *identity) set(id job.WorkerID) error {
	if old, ok := x.get(); ok && old == id {
		return nil
	}
	data, err := json.Marshal(identityFile{WorkerID: id, Name: x.name})
	if err != nil {
		return fmt.Errorf("encode worker identity: %w", err)
	}
	failpoint.At(failpoint.WorkerIdentityBefore)
	if err := durable.WriteTwice(x.file, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write worker identity: %w", err)
	}
	failpoint.At(failpoint.WorkerIdentityAfter)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.id = id
	return nil
}
