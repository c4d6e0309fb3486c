package embedded

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// The format of Pebble's log (package record of Pebble): blocks of 32 KiB, in
// them chunks with a checksum, the length of their payload, a type, and, by
// type, the number of the log and up to where the log was synced before.
const (
	blockSize = 32 << 10

	shortHeader   = 7  // checksum, length, type
	numberHeader  = 11 // and the number of the log
	promiseHeader = 19 // and the synced offset

	typeTrailer      = 5  // in a chunk without payload and with the number of the next log: the end
	firstNumberType  = 5  // types from here have a number
	firstPromiseType = 9  // types from here have a synced offset, too
	lastType         = 12 // the greatest type
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunkSum is the checksum of a chunk, from its type on.
func chunkSum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// chunk is a sound chunk of a log.
type chunk struct {
	size    int    // with its header
	promise uint64 // up to where the log was synced when it was written
}

// chunkAt reads the chunk at the beginning of b, which ends with its block.
func chunkAt(b []byte, log uint32) (c chunk, sound bool) {
	if len(b) < shortHeader || b[6] == 0 || b[6] > lastType {
		return chunk{}, false
	}
	header := shortHeader
	switch {
	case b[6] >= firstPromiseType:
		header = promiseHeader
	case b[6] >= firstNumberType:
		header = numberHeader
	}
	c.size = header + int(binary.LittleEndian.Uint16(b[4:]))
	if c.size > len(b) || header >= numberHeader && binary.LittleEndian.Uint32(b[7:]) != log ||
		chunkSum(b[6:c.size]) != binary.LittleEndian.Uint32(b) {
		return chunk{}, false
	}
	if header == promiseHeader {
		c.promise = binary.LittleEndian.Uint64(b[11:])
	}
	return c, true
}

// soundPrefix returns up to where a log can be read, and whether it was ended in
// good order there.
func soundPrefix(log []byte, number uint32) (end int, closed bool) {
	for end < len(log) {
		block := log[end:min(len(log), end/blockSize*blockSize+blockSize)]
		if c, sound := chunkAt(block, number); sound {
			end += c.size
			continue
		}
		if isTrailer(block, number) {
			return end + numberHeader, true
		}
		if len(block) >= promiseHeader || len(bytes.Trim(block, "\x00")) > 0 || end+len(block) == len(log) {
			return end, false
		}
		end += len(block) // no chunk fits in what is left of the block
	}
	return end, false
}

// isTrailer tells whether a block goes on with the end of the log. It has no checksum.
func isTrailer(b []byte, number uint32) bool {
	return len(b) >= numberHeader && b[6] == typeTrailer && bytes.Count(b[:6], []byte{0}) == 6 &&
		binary.LittleEndian.Uint32(b[7:]) == number+1
}

// promised returns up to where sound chunks behind end say that the log was
// synced; 0 when there are none.
func promised(log []byte, number uint32, end int) (synced uint64) {
	for at := end; at+shortHeader <= len(log); at++ {
		if t := log[at+6]; t < firstPromiseType || t > lastType {
			continue // most bytes, and the zeros of a file that was made larger than it is
		}
		block := log[at:min(len(log), at/blockSize*blockSize+blockSize)]
		if c, sound := chunkAt(block, number); sound {
			synced = max(synced, c.promise)
			at += c.size - 1
		}
	}
	return synced
}
