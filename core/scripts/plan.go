package scripts

import (
	"slices"
	"time"
)

// observation is when a file was first seen as it is now. The zero signature is
// that of a file that is not there.
type observation struct {
	sig   signature
	since time.Duration
}

// plan says what a look at a folder leads to.
type plan struct {
	copy    []string               // settled, to be read and published
	drop    []string               // gone for as long, no more to be published
	pending map[string]observation // what differs from what is published
	waiting bool                   // something differs that has not settled
}

// decide compares what is published with what is there. A difference counts once
// it has been the same for the settle time: a file that is still being written,
// and the gap of an editor that deletes before it writes, are waited out (P12).
// It is pure.
func decide(published, seen map[string]signature, pending map[string]observation, now, settle time.Duration) plan {
	p := plan{pending: map[string]observation{}}
	look := func(name string, sig signature) (settled bool) {
		o, ok := pending[name]
		if !ok || o.sig != sig {
			o = observation{sig, now}
		}
		p.pending[name] = o
		settled = now-o.since >= settle
		p.waiting = p.waiting || !settled
		return settled
	}
	for name, sig := range seen {
		if published[name] != sig && look(name, sig) {
			p.copy = append(p.copy, name)
		}
	}
	for name := range published {
		if _, ok := seen[name]; !ok && look(name, signature{}) {
			p.drop = append(p.drop, name)
		}
	}
	slices.Sort(p.copy)
	slices.Sort(p.drop)
	return p
}
