package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/ownership"
)

// Source serves the pair of a certificate folder (tls.crt, tls.key, ca.crt,
// crl.pem, revoked) to TLS and follows its changes. Each of pair, CAs and revocations is
// taken by itself: a bad one keeps its old state and warns once, and holds up
// none of the others. It may be used concurrently.
type Source struct {
	dir     string
	revoked []string // files
	log     *slog.Logger

	// reading makes one reload follow another. It is held while files are read,
	// and by nobody who serves a connection.
	reading sync.Mutex
	seen    [sha256.Size]byte // what the files held, guarded by reading
	trouble string            // what was wrong with them, guarded by reading
	// received is the newest list that another process passed on; it is guarded by
	// reading. nil: there was none.
	received *signedList
	spare    *os.File // a descriptor for when there are no others, guarded by reading
	spares   bool     // one is to be had, guarded by reading

	mu      sync.RWMutex // guards the fields below
	now     *material
	unread  error         // a list of revoked certificates that cannot be read
	changed chan struct{} // closed and replaced when now changes
}

// NewSource reads the pair in dir. Extra files name further lists of revoked
// certificates, such as that of a CA on this machine. A pair that cannot work
// is an error that says what is wrong with which file; one that is expired, or
// signed by a CA that is not in ca.crt, is served with a warning: peers have the
// last word.
func NewSource(dir string, log *slog.Logger, revokedFiles ...string) (*Source, error) {
	s := &Source{
		dir: dir, log: log,
		revoked: append(revokedFiles[:len(revokedFiles):len(revokedFiles)], filepath.Join(dir, crlFile), filepath.Join(dir, revokedFile)),
		changed: make(chan struct{}),
	}
	if err := ownership.CheckFolder(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err //nolint:wrapcheck // says what is wrong with which folder
	}
	l := s.look()
	m, problems := build(s.dir, l, nil, time.Now())
	if m == nil {
		return nil, problems[0]
	}
	s.now, s.seen = m, l.sum
	for _, p := range problems {
		log.Warn("the certificate folder is not in order", "folder", dir, "error", p)
	}
	s.trouble = text(problems)
	return s, nil
}

// Reload looks at the files now. Run does so by itself.
func (s *Source) Reload() {
	s.reading.Lock()
	defer s.reading.Unlock()
	l := s.look()
	if l.sum == s.seen && s.trouble == "" {
		return
	}
	old := s.material()
	m, problems := build(s.dir, l, old, time.Now())
	s.seen = l.sum
	if said := text(problems); said != s.trouble {
		s.trouble = said
		for _, p := range problems {
			if errors.As(p, new(*listError)) {
				s.log.Error("revocations cannot be read; retrying in 2s", "folder", s.dir, "error", p)
			} else {
				s.log.Warn("keeping the old certificates", "folder", s.dir, "error", p)
			}
		}
	}
	s.noteUnread(problems)
	if m.equal(old) {
		return
	}
	s.mu.Lock()
	s.now = m
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.log.Info("certificates reloaded", "folder", s.dir, "identity", m.pair.id.String(),
		"expires", m.pair.leaf().NotAfter, "cas", len(m.trust.cas), "revoked", len(m.revoked))
}

// noteUnread keeps what Unread returns.
func (s *Source) noteUnread(problems []error) {
	var unread error
	for _, p := range problems {
		if errors.As(p, new(*listError)) {
			unread = p
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unread = unread
}

// Unread returns why a list of revoked certificates cannot be read, if one cannot:
// what was revoked since then is not known.
func (s *Source) Unread() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.unread
}

func text(problems []error) string {
	if err := errors.Join(problems...); err != nil {
		return err.Error()
	}
	return ""
}

// contents are the files as they were at one moment.
type contents struct {
	crt, key, ca file
	lists        []file
	sum          [sha256.Size]byte
}

type file struct {
	path string
	data []byte
	err  error
}

func (f file) missing() bool { return errors.Is(f.err, fs.ErrNotExist) }

// look reads the files, again until two looks agree: somebody may be writing.
// They are small, and their bytes, unlike their times, cannot lie.
func (s *Source) look() contents {
	const tries = 10
	s.keepSpare()
	l := s.lookOnce()
	for range tries {
		again := s.lookOnce()
		if again.sum == l.sum {
			break
		}
		l = again
	}
	return l
}

func (s *Source) lookOnce() contents {
	var l contents
	h := sha256.New()
	take := func(path string, read func(string) ([]byte, error)) file {
		data, err := s.read(path, read)
		note := ""
		if err != nil {
			note = err.Error()
		}
		sum := sha256.Sum256(data)
		h.Write([]byte(path + "\x00" + note + "\x00"))
		h.Write(sum[:])
		return file{path, data, err}
	}
	l.crt, l.key, l.ca = take(s.file("tls.crt"), ownership.ReadTrusted), take(s.file("tls.key"), ownership.ReadSecret), take(s.file("ca.crt"), ownership.ReadTrusted)
	for _, path := range s.revoked {
		l.lists = append(l.lists, take(path, ownership.ReadTrusted))
	}
	if s.received != nil { // it counts also where the folder cannot be written
		l.lists = append(l.lists, file{path: "the list that was received", data: s.received.pem})
		h.Write(s.received.pem)
	}
	copy(l.sum[:], h.Sum(nil))
	return l
}

// read reads a file, with the spare descriptor when there is no other: a flood of
// connections must not keep a revocation from being read.
func (s *Source) read(path string, read func(string) ([]byte, error)) ([]byte, error) {
	data, err := read(path)
	for tries := 10; s.spare != nil && tries > 0 && outOfDescriptors(err); tries-- {
		s.spare.Close() // another goroutine may take it: then it is tried again
		s.spare = nil
		data, err = read(path)
		s.keepSpare()
	}
	return data, err
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// keepSpare opens the spare descriptor; s.reading is held. Without one, read does what
// it can.
func (s *Source) keepSpare() {
	if !s.spares || s.spare != nil {
		return
	}
	var err error
	if s.spare, err = os.Open(os.DevNull); err != nil {
		s.spare = nil
	}
}

func (s *Source) file(name string) string { return filepath.Join(s.dir, name) }

func (s *Source) material() *material {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.now
}

// ID is the identity that the source serves. It never changes.
func (s *Source) ID() ID { return s.material().pair.id }

// Authorities are the pins of the CAs that are trusted: they tell clusters apart.
func (s *Source) Authorities() []string {
	cas := s.material().trust.cas
	pins := make([]string, len(cas))
	for i, ca := range cas {
		pins[i] = pinOf(ca)
	}
	return pins
}

// Leaf is the certificate that the source serves. It must not be changed.
func (s *Source) Leaf() *x509.Certificate { return s.material().pair.leaf() }

// Changed returns a channel that is closed at the next change of pair, CAs or
// revocations. Ask for it before looking at the state that it is about.
func (s *Source) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Revoked tells whether a serial (lower-case hex) is revoked.
func (s *Source) Revoked(serial string) bool { return s.material().revoked[strings.ToLower(serial)] }
