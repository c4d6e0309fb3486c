package kernfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestReadReturnsTheWholeFileInAnyBuffer(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 15, 16, 17, 4096, 100_000} {
		want := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, buf := range [][]byte{nil, make([]byte, 16), make([]byte, 1<<20)} {
			if got, err := Read(path, buf); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes in a buffer of %d: %d bytes, %v", size, len(buf), len(got), err)
			}
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := Read(t.TempDir(), nil); err == nil {
		t.Error("a folder was read")
	}
}
