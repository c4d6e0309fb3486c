package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
func openIdentity(file, name string) (*identity, error) {
	const op = "read worker identity"
	x := &identity{file: file, name: name}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, errs.E(op, errs.Internal, "DATA_FOLDER", err)
	}
	var f identityFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, errs.E(op, errs.Internal, "DATA_FOLDER", fmt.Errorf("%s: %w", file, err)).
			WithHint("remove the file to register as a new worker")
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
