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

	"github.com/droverhq/drover/plugins/failpoint"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// JournalName is the file in DROVER_PLUGIN_DIR that outlives a killed plugin.
const JournalName = "exits.journal"

// keepsName is a file beside it: nothing is reaped that is not in the journal. It
// is removed before that stops to be true.
const keepsName = "keeps"

// journalCompact is the size from which records of acknowledged ids are
// dropped by rewriting the file.
const journalCompact = 1 << 20

// castagnoli has hardware support on every machine that drover runs on.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal records starts and exits by plain write(2): what was written
// survives kill -9 of the plugin (not a power loss, which ends the jobs too).
type journal struct {
	path  string
	keeps string // file of the promise; "" gives none

	mu   sync.Mutex // guards the fields below and the order of records
	file *os.File
	size int64
}

// openJournal begins a new journal; path "" keeps none (in-process tests). keeps is
// the promise of Info.
func openJournal(path string, keeps bool) (*journal, error) {
	j := &journal{path: path}
	if path == "" {
		return j, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the exit journal: %w", err)
	}
	j.file = f
	_ = j.append(header()) // on a full disk the first record tries again
	if keeps {
		j.keeps = filepath.Join(filepath.Dir(path), keepsName)
		if err := os.WriteFile(j.keeps, nil, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("open the exit journal: %w", err), f.Close())
		}
	}
	return j, nil
}

// header is the first record of a journal: one that is empty has lost what it had.
func header() *runnerv1.SessionResponse { return &runnerv1.SessionResponse{Synced: true} }

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

// append writes one record with one write. After an error nothing of it is in the
// journal, and the promise to keep is taken back.
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
	if first, err := frameRecord(header()); err == nil && j.size == 0 && !proto.Equal(m, header()) {
		rec = append(first, rec...)
	}
	if _, err := j.file.Write(rec); err != nil {
		// What follows a torn record could not be read.
		return fmt.Errorf("write the exit journal: %w", errors.Join(err, j.file.Truncate(j.size), j.takeBack()))
	}
	j.size += int64(len(rec))
	return nil
}

// takeBack removes the promise to keep; j.mu is held. It needs no room on the disk.
func (j *journal) takeBack() error {
	if j.keeps == "" {
		return nil
	}
	if err := os.Remove(j.keeps); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the promise to keep back: %w", err)
	}
	return nil
}

// full tells whether the journal should be compacted.
func (j *journal) full() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > failpoint.Sooner[int64](journalCompact, 256)
}

// rewrite replaces the journal by what still matters.
func (j *journal) rewrite(live []*runnerv1.SessionResponse) error {
	if j.path == "" {
		return nil
	}
	var data []byte
	for _, m := range append([]*runnerv1.SessionResponse{header()}, live...) {
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
	failpoint.At(failpoint.PluginCompactBefore)
	if err := os.Rename(next, j.path); err != nil {
		return errors.Join(fmt.Errorf("compact the exit journal: %w", err), f.Close())
	}
	failpoint.At(failpoint.PluginCompactAfter)
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
	// Keeps: the process has reaped nothing that is not in Exited (Info.Keeps).
	Keeps bool
	// Damaged: it is missing, or not what the process has written. What it does not
	// name may have been started all the same.
	Damaged bool
}

// withdrawn stands for the pid of a start that never came to a fork.
const withdrawn = -1

// Withdraw writes into the journal of a dead plugin process that starts whose fork
// was about to happen never happened: ReadJournal knows them no more.
func Withdraw(dir string, ids []string) error {
	m := &runnerv1.SessionResponse{}
	for _, id := range ids {
		m.Started = append(m.Started, &runnerv1.Started{Id: id, Pid: withdrawn})
	}
	rec, err := frameRecord(m)
	if err != nil {
		return err
	}
	// What it was killed in the middle of is cut off.
	path := filepath.Join(dir, JournalName)
	_, whole, _, err := readJournal(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open the exit journal: %w", err)
	}
	err = f.Truncate(whole)
	if err == nil {
		_, err = f.WriteAt(rec, whole)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the exit journal: %w", err)
	}
	return nil
}

// ReadJournal reads the exit journal in a plugin's folder. A torn tail, as a
// kill in the middle of a write leaves it, is where the journal ends.
func ReadJournal(dir string) (Journal, error) {
	out := Journal{Started: map[string]*runnerv1.Started{}, Exited: map[string]*runnerv1.Exited{}}
	records, _, damaged, err := readJournal(filepath.Join(dir, JournalName))
	for _, m := range records {
		for _, s := range m.GetStarted() {
			out.Started[s.GetId()] = s
			if s.GetPid() == withdrawn {
				delete(out.Started, s.GetId())
			}
		}
		for _, e := range m.GetExited() {
			e.FromJournal = true
			out.Exited[e.GetId()] = e
		}
	}
	out.Damaged = damaged || err != nil
	out.Keeps = !out.Damaged && Keeps(dir)
	return out, err
}

// Keeps tells whether the plugin process of a folder promises what Info.Keeps says.
func Keeps(dir string) bool {
	_, missing := os.Stat(filepath.Join(dir, keepsName))
	return missing == nil
}

// readJournal reads the records that are whole, and how many bytes they are.
func readJournal(path string) (records []*runnerv1.SessionResponse, whole int64, damaged bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, true, nil
	}
	if err != nil {
		return nil, 0, true, fmt.Errorf("read the exit journal: %w", err)
	}
	for len(data) >= 8 {
		n := int64(binary.LittleEndian.Uint32(data))
		if n <= maxMessage && int64(len(data)) < 8+n {
			break
		}
		if n > maxMessage || crc32.Checksum(data[8:8+n], castagnoli) != binary.LittleEndian.Uint32(data[4:]) {
			return records, whole, true, nil
		}
		m := &runnerv1.SessionResponse{}
		if err := proto.Unmarshal(data[8:8+n], m); err != nil {
			return records, whole, true, fmt.Errorf("read the exit journal: %w", err)
		}
		records = append(records, m)
		whole += 8 + n
		data = data[8+n:]
	}
	return records, whole, len(records) == 0, nil
}
