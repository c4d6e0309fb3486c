package pluginhost

import (
	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// frameBytes bounds a frame that is made of many things. A plugin in another language
// takes 4 MiB, gRPC's default, and the largest start has less than half of that.
const frameBytes = 2 << 20

// itemBytes is what a thing costs in its frame besides its own bytes.
const itemBytes = 8

// cutFrame takes from what waits as much as one frame has room for, at least one
// thing. What is about a start does not go before the start.
func cutFrame(from *runnerv1.SessionRequest) *runnerv1.SessionRequest {
	f, room := &runnerv1.SessionRequest{}, frameBytes
	all := move(&f.Starts, &from.Starts, &room) && move(&f.Adopts, &from.Adopts, &room) && move(&f.Signals, &from.Signals, &room)
	if !all {
		return f
	}
	for len(from.Acks) > 0 && room > 0 {
		room -= len(from.Acks[0]) + itemBytes
		f.Acks, from.Acks = append(f.Acks, from.Acks[0]), from.Acks[1:]
	}
	return f
}

// move moves what there is room for, and reports whether that was all. An empty frame
// has room for anything.
func move[M proto.Message](to, from *[]M, room *int) (all bool) {
	for len(*from) > 0 {
		n := proto.Size((*from)[0]) + itemBytes
		if n > *room && *room < frameBytes {
			return false
		}
		*room -= n
		*to, *from = append(*to, (*from)[0]), (*from)[1:]
	}
	*from = nil
	return true
}
