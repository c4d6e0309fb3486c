package memory

import (
	"bytes"
	"hash/fnv"

	"github.com/droverhq/drover/core/store"
)

// node is a treap that is never written after it was made: a change copies the
// path to it, so that a scan keeps the tree it began with. The weights come
// from the keys, which makes the shape independent of the order of changes.
type node struct {
	key, value  []byte
	weight      uint64
	left, right *node
}

func (n *node) copyWith(left, right *node) *node {
	return &node{key: n.key, value: n.value, weight: n.weight, left: left, right: right}
}

// after is the smallest key greater than key.
func after(key []byte) []byte { return append(bytes.Clone(key), 0) }

// find returns the node of a key, or nil.
func (n *node) find(key []byte) *node {
	for n != nil {
		switch c := bytes.Compare(key, n.key); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n
		}
	}
	return nil
}

// split returns the keys below key, and the others.
func (n *node) split(key []byte) (below, rest *node) {
	if n == nil {
		return nil, nil
	}
	if bytes.Compare(n.key, key) < 0 {
		below, rest = n.right.split(key)
		return n.copyWith(n.left, below), rest
	}
	below, rest = n.left.split(key)
	return below, n.copyWith(rest, n.right)
}

// join makes one tree of two; every key of a is below every key of b.
func join(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.weight > b.weight:
		return a.copyWith(a.left, join(a.right, b))
	default:
		return b.copyWith(join(a, b.left), b.right)
	}
}

// with returns the tree with a pair set.
func (n *node) with(key, value []byte) *node {
	h := fnv.New64a()
	_, _ = h.Write(key) // never fails, see hash.Hash
	below, rest := n.split(key)
	_, above := rest.split(after(key))
	return join(join(below, &node{key: key, value: value, weight: h.Sum64()}), above)
}

// without returns the tree without the keys from from to to.
func (n *node) without(from, to []byte) *node {
	below, rest := n.split(from)
	_, above := rest.split(to)
	return join(below, above)
}

// walk visits the pairs of a range in its order until visit returns false.
func (n *node) walk(r store.Range, visit func(*node) bool) bool {
	if n == nil {
		return true
	}
	first, second := n.left, n.right
	if r.Reverse {
		first, second = second, first
	}
	low := r.From == nil || bytes.Compare(n.key, r.From) >= 0 // n and what is right of it may be in range
	high := r.To == nil || bytes.Compare(n.key, r.To) < 0     // n and what is left of it may be in range
	enter := func(child *node) bool {
		if child == n.left && !low || child == n.right && !high {
			return true
		}
		return child.walk(r, visit)
	}
	return enter(first) && (!low || !high || visit(n)) && enter(second)
}
