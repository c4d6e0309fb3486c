package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/plugins/durable"
)

// resyncWindow bounds the search for a whole record after damage.
const resyncWindow = 1 << 20

const lossHint = "attempts could be started twice without this file; restore it, or remove the worker and its data folder"

// load reads the file, cuts a torn tail and builds index and state. A file that is
// shorter than it has been is refused.
func (j *Journal) load(least lengths) (*State, error) {
	const op = "read journal"
	f, err := j.open(j.path)
	if err != nil {
		return nil, errs.E(op, errs.Internal, ReasonWrite, err).WithHint(lossHint)
	}
	j.f = f
	data, err := os.ReadFile(j.path)
	if err != nil {
		return nil, errs.E(op, errs.Internal, ReasonCorrupt, errors.Join(err, f.Close()))
	}
	state, good, err := j.replay(data)
	if err == nil && good < least.size {
		err = fmt.Errorf("it has %d bytes of whole records, and had %d: its end is lost", good, least.size)
	}
	if err == nil && good < int64(len(data)) {
		j.log.Warn("journal tail was torn and is cut off", "path", j.path, "kept", good, "cut", int64(len(data))-good)
		err = f.Truncate(good)
	}
	if err == nil && good == 0 {
		_, err = f.Write([]byte(magic))
		good = int64(len(magic))
		err = errors.Join(err, durable.SyncFolder(filepath.Dir(j.path)))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: %w", j.path, err), f.Close())
		return nil, errs.E(op, errs.Internal, ReasonCorrupt, err).
			WithHint(lossHint)
	}
	j.size, j.reserved, j.synced = good, good, least.synced
	j.noteLength()
	return state, nil
}

// replay walks the frames of data and returns how many bytes of it are good.
func (j *Journal) replay(data []byte) (*State, int64, error) {
	j.index = newIndex()
	fold := newFold()
	if len(data) < len(magic) {
		if string(data) != magic[:len(data)] {
			return nil, 0, errors.New("not a drover journal")
		}
		return fold.state(), 0, nil
	}
	if string(data[:len(magic)]) != magic {
		return nil, 0, errors.New("not a drover journal, or of a version this worker does not know")
	}
	at := int64(len(magic))
	for at < int64(len(data)) {
		body, n, err := nextFrame(data[at:])
		if err != nil {
			if whole := resync(data[at+1:]); whole >= 0 {
				return nil, 0, fmt.Errorf("damaged at byte %d, whole records follow at %d: %w", at, at+1+whole, err)
			}
			return fold.state(), at, nil
		}
		r, err := parseRecord(body)
		if err != nil {
			return nil, 0, fmt.Errorf("record at byte %d: %w", at, err)
		}
		j.dead += j.index.add(&r, ref{off: at, n: n})
		fold.add(&r)
		at += n
	}
	return fold.state(), at, nil
}

// nextFrame returns the body of the frame that b begins with and its length.
func nextFrame(b []byte) ([]byte, int64, error) {
	if len(b) < frameHead {
		return nil, 0, io.ErrUnexpectedEOF
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n == 0 || n > maxRecord {
		return nil, 0, fmt.Errorf("impossible length %d", n)
	}
	if int64(len(b)) < frameHead+n {
		return nil, 0, io.ErrUnexpectedEOF
	}
	body := b[frameHead : frameHead+n]
	if crc32.Checksum(body, crcTable()) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0, errors.New("checksum differs")
	}
	return body, frameHead + n, nil
}

// resync looks for a whole record after damage. A torn tail has none; one that
// follows means that something other than a crash changed the file.
func resync(b []byte) int64 {
	for i := range min(len(b), resyncWindow) {
		if _, _, err := nextFrame(b[i:]); err == nil {
			return int64(i)
		}
	}
	return -1
}
