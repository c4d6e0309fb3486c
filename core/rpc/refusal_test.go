package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/droverhq/drover/core/errs"
)

// TestARefusalIsToldToItsCaller: however its frame is cut, and nothing else is taken for one.
func TestARefusalIsToldToItsCaller(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	said := make(chan []byte)
	go func() {
		first := make([]byte, 4096)
		n, _ := theirs.Read(first)
		theirs.Close() // it has heard
		said <- first[:n]
	}()
	sayRefused(ours, errors.New("not for a limit"))
	sayRefused(ours, errs.E("connect", errs.Exhausted, "OVERLOADED", errors.New("too many"+strings.Repeat("!", 2*maxRefusal))))
	ours.Close()
	frame := <-said
	if len(frame) > frameHead+8+maxRefusal {
		t.Errorf("a refusal has %d bytes", len(frame))
	}
	for _, first := range []int{frameHead, frameHead + 3, len(frame)} {
		err := refusal(frame[:first], bytes.NewReader(frame[first:]))
		if why := Refused(fmt.Sprintf("desc = %q", err)); !strings.HasPrefix(why, "OVERLOADED: too many!") || strings.HasSuffix(why, `"`) {
			t.Errorf("with %d bytes at first: %v", first, err)
		}
	}
	var settings bytes.Buffer
	if err := http2.NewFramer(&settings, nil).WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := refusal(settings.Bytes(), nil); err != nil || Refused("connection refused") != "" {
		t.Errorf("a greeting is a refusal: %v", err)
	}
	if err := refusal(frame[:frameHead], strings.NewReader("")); err == nil || Refused(err.Error()) != "" {
		t.Errorf("half of one: %v", err)
	}
}
