package rpc

import (
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/core/job"
)

// Bounds of messages in encoded bytes.
const (
	// MaxMessage is the largest message that either side takes.
	MaxMessage = 8 << 20
	// frameBytes is how far a page or a frame grows that is made of many items. It is
	// half of the largest message: room for what stands around the items.
	frameBytes = MaxMessage / 2
	// itemBytes is what an item costs in its message besides its own bytes.
	itemBytes = 8
	// maxRequest bounds the request for one job, whose fields have bounds of their own
	// (core/scheduler): an order with it always fits into a frame.
	maxRequest = 5 << 20
	// maxText bounds a text of an error: it travels in headers.
	maxText = job.MaxMessage
)

// page gathers the items of an answer until it is large enough.
type page[M proto.Message] struct {
	items []M
	bytes int
}

// add takes an item, and reports whether there was room. There always is for the first.
func (p *page[M]) add(item M) bool {
	n := proto.Size(item) + itemBytes
	if len(p.items) > 0 && p.bytes+n > frameBytes {
		return false
	}
	p.items, p.bytes = append(p.items, item), p.bytes+n
	return true
}

// frames cuts items into pages. Each has one item at least.
func frames[T any, M proto.Message](all []T, convert func(*T) M) iter.Seq[[]M] {
	return func(yield func([]M) bool) {
		var p page[M]
		for i := range all {
			item := convert(&all[i])
			if p.add(item) {
				continue
			}
			if !yield(p.items) {
				return
			}
			p = page[M]{}
			p.add(item)
		}
		if len(p.items) > 0 {
			yield(p.items)
		}
	}
}
