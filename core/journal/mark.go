package journal

import (
	"fmt"
	"hash/crc32"
	"os"
	"strings"
)

// mark is a second place that knows how long the journal is. A tail that was cut off
// at the end of a record, or in a record, looks as if it had never been written; the
// attempts in it would be started again (P2). It is overwritten in place after each
// batch, without a sync: what write(2) took survives a kill, and a power loss is told by
// another boot.
type mark struct {
	f    *os.File
	boot string
}

// lengths are what a mark says of the journal.
type lengths struct {
	size   int64 // bytes that were written in this boot
	synced int64 // bytes that are on the disk, whatever happens
}

// openMark opens the mark and returns what it says. One that is missing or damaged says
// nothing.
func openMark(path, boot string) (*mark, lengths, error) {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, lengths{}, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, lengths{}, fmt.Errorf("open the journal's length: %w", err)
	}
	m := &mark{f, strings.Join(strings.Fields(boot), "")}
	return m, m.read(), nil
}

func (m *mark) read() lengths {
	var l lengths
	var of, sum string
	b := make([]byte, 256)
	n, _ := m.f.ReadAt(b, 0)
	text, _, _ := strings.Cut(string(b[:n]), "\n")
	if _, err := fmt.Sscanf(text, "size %d synced %d boot %s sum %s", &l.size, &l.synced, &of, &sum); err != nil {
		return lengths{}
	}
	if text+"\n" != markText(l, strings.TrimSpace(of)) {
		return lengths{}
	}
	if of != m.bootWord() {
		l.size = l.synced // of what was not synced a power loss takes what it likes
	}
	return l
}

func (m *mark) bootWord() string {
	if m.boot == "" {
		return "-"
	}
	return m.boot
}

// write notes the lengths.
func (m *mark) write(l lengths) error {
	if m == nil {
		return nil
	}
	if _, err := m.f.WriteAt([]byte(markText(l, m.bootWord())), 0); err != nil {
		return fmt.Errorf("note the journal's length: %w", err)
	}
	return nil
}

// markText is always as long: numbers are filled up.
func markText(l lengths, boot string) string {
	text := fmt.Sprintf("size %016d synced %016d boot %s", l.size, l.synced, boot)
	return fmt.Sprintf("%s sum %08x\n", text, crc32.Checksum([]byte(text), crcTable()))
}

func (m *mark) close() error {
	if m == nil {
		return nil
	}
	return m.f.Close()
}
