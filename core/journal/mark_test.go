package journal

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func openBoot(path, boot string) (*Journal, *State, error) {
	return Open(Config{Path: path, Boot: boot, Log: slog.New(slog.DiscardHandler)})
}

// TestP2_JournalHasLostItsEnd_IsRefused: the attempts in it would be started again. Such
// an end was taken for one that a kill had torn, and a missing journal for a new one.
func TestP2_JournalHasLostItsEnd_IsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := openBoot(path, "one")
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, j, Record{Kind: KindFence, Fence: job.Fence{Term: 2}, Epoch: 1}) // this is synced
	synced, _ := j.Size()
	appendAll(t, j, intent(1, 1))
	size, _ := j.Size()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	length, err := os.ReadFile(path + ".size")
	if err != nil {
		t.Fatal(err)
	}
	for cut := range size + 1 {
		for boot, least := range map[string]int64{"one": size, "two": synced} {
			if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+".size", length, 0o600); err != nil {
				t.Fatal(err)
			}
			j, st, err := openBoot(path, boot)
			if cut < least {
				if errs.ReasonOf(err) != ReasonCorrupt || !strings.Contains(err.Error(), path) {
					t.Fatalf("cut at %d, boot %s: %v", cut, boot, err)
				}
				if left, err := os.ReadFile(path); int64(len(left)) != cut || err != nil {
					t.Fatalf("cut at %d: the file was changed to %d bytes, %v", cut, len(left), err)
				}
				continue
			}
			if err != nil || (len(st.Attempts) == 1) != (cut == size) {
				t.Fatalf("cut at %d, boot %s: %+v, %v", cut, boot, st, err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".size", length, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openBoot(path, "two"); errs.ReasonOf(err) != ReasonCorrupt {
		t.Errorf("the journal is missing: %v", err)
	}
}

// TestJournalLengthIsDamaged_TheJournalIsRead: nothing is lost yet.
func TestJournalLengthIsDamaged_TheJournalIsRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openAt(t, path)
	appendAll(t, j, intent(1, 1))
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	length, err := os.ReadFile(path + ".size")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"whole": length, "empty": nil, "half": length[:len(length)/2], "garbage": []byte(strings.Repeat("\xa5", len(length))),
		"another number": []byte(strings.Replace(string(length), "size 0", "size 9", 1)),
	} {
		if err := os.WriteFile(path+".size", text, 0o600); err != nil {
			t.Fatal(err)
		}
		j, st := openAt(t, path)
		if len(st.Attempts) != 1 {
			t.Errorf("%s: %+v", name, st)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path + ".size"); !strings.HasPrefix(string(now), string(length[:21])) || err != nil {
			t.Errorf("%s: it is %q now, was %q, %v", name, now, length, err)
		}
	}
}
