package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/droverhq/drover/plugins/durable"
)

func TestWrite_ReplacesWhole_AndLeavesNothingBeside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, text := range []string{"one", "two"} {
		if err := durable.Write(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%v, %v", info, err)
		}
		if got, err := os.ReadFile(path); string(got) != text || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := durable.Write(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its folder: %v", err)
	}
	if left, err := os.ReadDir(dir); len(left) != 1 || err != nil {
		t.Errorf("%v lie there, %v", left, err)
	}
}

// TestReadTwice_OneCopyIsDamaged_TheOtherIsRead, and takes its place. Nothing is said of
// a second copy: the next write makes it again.
func TestReadTwice_OneCopyIsDamaged_TheOtherIsRead(t *testing.T) {
	t.Parallel()
	errHalf := errors.New("it is not whole")
	var got string
	parse := func(data []byte) error {
		if string(data) != "whole" {
			return errHalf
		}
		got = string(data)
		return nil
	}
	spoil := map[string]func(string) error{
		"half":    func(p string) error { return os.WriteFile(p, []byte("wh"), 0o600) },
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"missing": os.Remove,
		"folder":  func(p string) error { return errors.Join(os.Remove(p), os.MkdirAll(filepath.Join(p, "x"), 0o700)) },
	}
	for name, damage := range spoil {
		path := filepath.Join(t.TempDir(), "f")
		write := func() {
			if err := durable.WriteTwice(path, []byte("whole"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			write()
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			if said, err := durable.ReadTwice(path, parse); err != nil || said == nil {
				t.Errorf("%s: %v, %v", name, said, err)
			}
		}
		write()
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		for want := range 2 { // the second time it has been mended
			got = ""
			if said, err := durable.ReadTwice(path, parse); err != nil || (said == nil) != (want == 1) || got != "whole" {
				t.Errorf("%s: %q, %v, %v", name, got, said, err)
			}
		}
		write()
		if err := damage(path + ".copy"); err != nil {
			t.Fatal(err)
		}
		if said, err := durable.ReadTwice(path, parse); err != nil || said != nil {
			t.Errorf("%s of the second copy: %v, %v", name, said, err)
		}
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		_, err := durable.ReadTwice(path, parse)
		if err == nil || errors.Is(err, fs.ErrNotExist) != (name == "missing") {
			t.Errorf("%s of both: %v", name, err)
		}
	}
}
