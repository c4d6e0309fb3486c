package job

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Life is one start of a scheduler on its records. A term says how often records were
// started on, and two copies of them count alike; the mark tells them apart (P3).
type Life struct {
	Term uint64
	Mark Mark
}

// Mark is random, and proves that it was made with the secret of some records: 8 random
// bytes, and the beginning of an HMAC (RFC 2104) of them and the term.
type Mark [16]byte

// lifeBytes is the size of an encoded life.
const lifeBytes = 8 + len(Mark{})

// NewLife makes the life of a term. secret is kept with the records, and copied with them.
func NewLife(term uint64, secret []byte) Life {
	l := Life{Term: term}
	rand.Read(l.Mark[:8]) // never fails: crypto/rand
	copy(l.Mark[8:], l.seal(secret))
	return l
}

func (l *Life) seal(secret []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(binary.BigEndian.AppendUint64(l.Mark[:8:8], l.Term))
	return h.Sum(nil)[:8]
}

// Genuine tells whether a life was made with a secret: by these records or a copy.
func (l *Life) Genuine(secret []byte) bool { return hmac.Equal(l.Mark[8:], l.seal(secret)) }

// String names the life in logs.
func (l *Life) String() string { return fmt.Sprintf("%d-%x", l.Term, l.Mark[:4]) }

// MaxLives is how many a history lists; older ones are taken for known.
const MaxLives = 1024

// History is what records say of the lives of their schedulers.
type History struct {
	Lives []Life // oldest first, at most MaxLives
	// Decided is a term that an operator has chosen: what workers were told in terms
	// below it is overruled.
	Decided uint64
}

// Holds tells whether a life is part of a history, or overruled by it.
func (h *History) Holds(l Life) bool {
	if l == (Life{}) || len(h.Lives) == 0 {
		return true // of a version that had no lives
	}
	if l.Term < h.Decided || len(h.Lives) == MaxLives && l.Term < h.Lives[0].Term {
		return true
	}
	return slices.Contains(h.Lives, l)
}

// Overrules tells whether an operator has decided for these records since a life: what
// it acknowledged may be lost.
func (h *History) Overrules(l Life) bool { return l != (Life{}) && l.Term < h.Decided }

// Add appends the newest life.
func (h *History) Add(l Life) {
	h.Lives = append(h.Lives, l)
	h.Lives = h.Lives[max(0, len(h.Lives)-MaxLives):]
}

// Last is the newest life; zero without any.
func (h *History) Last() Life {
	if len(h.Lives) == 0 {
		return Life{}
	}
	return h.Lives[len(h.Lives)-1]
}

// EncodeLives writes lives as bytes.
func EncodeLives(lives []Life) []byte {
	out := make([]byte, 0, len(lives)*lifeBytes)
	for i := range lives {
		out = binary.BigEndian.AppendUint64(out, lives[i].Term)
		out = append(out, lives[i].Mark[:]...)
	}
	return out
}

// DecodeLives reads what EncodeLives wrote.
func DecodeLives(b []byte) ([]Life, error) {
	if len(b)%lifeBytes != 0 || len(b)/lifeBytes > MaxLives {
		return nil, errors.New("the lives of schedulers: not their size")
	}
	lives := make([]Life, 0, len(b)/lifeBytes)
	for p := range slices.Chunk(b, lifeBytes) {
		lives = append(lives, Life{binary.BigEndian.Uint64(p), Mark(p[8:])})
	}
	return lives, nil
}

// StrangeLifeError refuses a scheduler whose records do not hold the life that a worker was
// commanded by last: they are an older copy, or others.
type StrangeLifeError struct {
	Last Life   // that the worker knows
	Term uint64 // of the refused scheduler
}

// Error implements error.
func (e *StrangeLifeError) Error() string {
	return fmt.Sprintf("a scheduler of life %s has commanded this worker, and the records of this one, of term %d, do not know it", &e.Last, e.Term)
}
