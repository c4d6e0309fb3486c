package rpc

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/droverhq/drover/core/errs"
)

// A server that refuses a connection for a limit says so to a caller with an identity:
// the first frame is a GOAWAY with the reason as debug data (RFC 9113, 6.8), in place of
// SETTINGS. After SETTINGS gRPC would take the connection for a good one, and dial again
// at once rather than after its back-off. Callers without an identity are told nothing.

// refusedMark begins the text of a refusal, also where gRPC has made a status of it.
const refusedMark = "the server refuses the connection: "

// Bounds of a refusal.
const (
	maxRefusal = 512 // bytes of debug data
	// A caller that still writes when the connection is closed meets a reset, and does
	// not read. So it has this long to read and to close, or so many bytes.
	refusalTime  = time.Second
	refusalBytes = 64 << 10
)

// sayRefused tells a caller why its connection is going to be closed, and waits until it
// has heard. What is written has room in the socket, for nothing was written before.
func sayRefused(conn net.Conn, err error) {
	e := (*errs.Error)(nil)
	if !errors.As(err, &e) || e.Kind != errs.Exhausted {
		return
	}
	var frame bytes.Buffer
	why := e.Reason + ": " + e.Err.Error()
	_ = http2.NewFramer(&frame, nil).WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte(why[:min(len(why), maxRefusal)]))
	_, errWrite := conn.Write(frame.Bytes())
	if errWrite == nil && conn.SetReadDeadline(time.Now().Add(refusalTime)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, refusalBytes)) // it is closed anyway
	}
}

// refusal is the error of a connection whose first bytes are those of a GOAWAY; nil: they
// are not. The rest of the frame comes from more.
func refusal(first []byte, more io.Reader) error {
	if len(first) < frameHead || http2.FrameType(first[3]) != http2.FrameGoAway {
		return nil
	}
	frames := http2.NewFramer(nil, io.MultiReader(bytes.NewReader(first), more))
	frames.SetMaxReadFrameSize(2 * maxRefusal)
	f, err := frames.ReadFrame()
	if err != nil {
		return err
	}
	bye, ok := f.(*http2.GoAwayFrame)
	if !ok {
		return nil
	}
	return errors.New(refusedMark + string(bye.DebugData()))
}

// Refused finds what a server said that refused a connection in the text of a status; ""
// when it said nothing.
func Refused(text string) string {
	_, why, _ := strings.Cut(text, refusedMark)
	return strings.TrimRight(why, `"`) // gRPC has quoted it
}
