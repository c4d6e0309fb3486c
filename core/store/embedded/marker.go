package embedded

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	manifestMarker = "marker.manifest."
	formatMarker   = "marker.format-version."
)

// checkMarker refuses a store whose records no marker leads to any more. Pebble takes
// such a folder for one that is to be made, and its records would be forgotten without
// a word (P1, P15). One that was killed while it was made has no records yet.
func checkMarker(dir string, fs vfs.FS) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("look through the folder: %w", err)
	}
	manifest, records := false, false
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, manifestMarker):
			return nil
		case strings.HasPrefix(name, "MANIFEST-"):
			manifest = true
		case strings.HasSuffix(name, ".sst"):
			records = true
		case strings.HasSuffix(name, ".log"):
			info, err := fs.Stat(path.Join(dir, name))
			records = records || err == nil && info.Size() > 0
		}
	}
	if manifest && records {
		return fmt.Errorf("%s: the file %sN.MANIFEST-N is missing, and nothing says which of its records count", dir, manifestMarker)
	}
	return nil
}

// nameMarker says which file Pebble misses.
func nameMarker(dir string, err error) error {
	if errors.Is(err, pebble.ErrDBNotPristine) {
		return fmt.Errorf("%s: the file %sN.N is missing: %w", dir, formatMarker, err)
	}
	return err
}
