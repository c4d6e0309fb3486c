package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// JournalName is the file in DROVER_PLUGIN_DIR that outlives a killed plugin.
const JournalName = "exits.journal"

// journalCompact is the size from which records of acknowledged ids are
// dropped by rewriting the file.
const journalCompact = 1 << 20

// castagnoli has hardware support on every machine that drover runs on.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal records starts and exits by plain write(2): what was written
// survives kill -9 of the plugin (not a power loss, which ends the jobs too).
type journal struct {
	path string

	mu   sync.Mutex // guards the fields below and the order of records
	file *os.File
	size int64
}

// openJournal begins a new journal; path "" keeps none (in-process tests).
func openJournal(path string) (*journal, error) {
	j := &journal{path: path}
	if path == "" {
		return j, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the exit journal: %w", err)
	}
	j.file = f
	return j, nil
}

func frameRecord(m *runnerv1.SessionResponse) ([]byte, error) {
	payload, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a journal record: %w", err)
	}
	out := make([]byte, 8, 8+len(payload))
	binary.LittleEndian.PutUint32(out, uint32(len(payload)))
	binary.LittleEndian.PutUint32(out[4:], crc32.Checksum(payload, castagnoli))
	return append(out, payload...), nil
}

// append writes one record with one write.
func (j *journal) append(m *runnerv1.SessionResponse) error {
	if j.path == "" {
		return nil
	}
	rec, err := frameRecord(m)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	n, err := j.file.Write(rec)
	j.size += int64(n)
	if err != nil {
		return fmt.Errorf("write the exit journal: %w", err)
	}
	return nil
}

// full tells whether the journal should be compacted.
func (j *journal) full() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > journalCompact
}

// rewrite replaces the journal by what still matters.
func (j *journal) rewrite(live []*runnerv1.SessionResponse) error {
	if j.path == "" {
		return nil
	}
	var data []byte
	for _, m := range live {
		rec, err := frameRecord(m)
		if err != nil {
			return err
		}
		data = append(data, rec...)
	}
	next := j.path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("compact the exit journal: %w", err)
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(fmt.Errorf("compact the exit journal: %w", err), f.Close())
	}
	if err := os.Rename(next, j.path); err != nil {
		return errors.Join(fmt.Errorf("compact the exit journal: %w", err), f.Close())
	}
	j.mu.Lock()
	old := j.file
	j.file, j.size = f, int64(len(data))
	j.mu.Unlock()
	return old.Close()
}

func (j *journal) close() error {
	if j.path == "" {
		return nil
	}
	return j.file.Close()
}

// Journal is what a plugin process left behind.
type Journal struct {
	Started map[string]*runnerv1.Started // pid 0: the fork was about to happen
	Exited  map[string]*runnerv1.Exited  // from_journal is set
}

// ReadJournal reads the exit journal in a plugin's folder. A torn tail, as a
// kill in the middle of a write leaves it, is where the journal ends; a
// missing file is an empty journal.
func ReadJournal(dir string) (Journal, error) {
	out := Journal{Started: map[string]*runnerv1.Started{}, Exited: map[string]*runnerv1.Exited{}}
	data, err := os.ReadFile(filepath.Join(dir, JournalName))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("read the exit journal: %w", err)
	}
	for len(data) >= 8 {
		n := int64(binary.LittleEndian.Uint32(data))
		if int64(len(data)) < 8+n || crc32.Checksum(data[8:8+n], castagnoli) != binary.LittleEndian.Uint32(data[4:]) {
			break
		}
		var m runnerv1.SessionResponse
		if err := proto.Unmarshal(data[8:8+n], &m); err != nil {
			return out, fmt.Errorf("read the exit journal: %w", err)
		}
		for _, s := range m.GetStarted() {
			out.Started[s.GetId()] = s
		}
		for _, e := range m.GetExited() {
			e.FromJournal = true
			out.Exited[e.GetId()] = e
		}
		data = data[8+n:]
	}
	return out, nil
}
