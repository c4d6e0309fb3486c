package client

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
)

// TestAConnectionThatIsRefusedForALimit_SaysSo: nobody is sent to start a scheduler.
func TestAConnectionThatIsRefusedForALimit_SaysSo(t *testing.T) {
	t.Parallel()
	c := &Client{address: "s:1", reason: certs.Explain, watches: map[string]*transport{"s:1": {}}}
	for text, want := range map[string]string{
		`connection error: desc = "error reading server preface: the server refuses the connection: OVERLOADED: ann has 2 connections open already"`: "OVERLOADED",
		`connection error: desc = "error reading server preface: EOF"`:                                                                               "UNREACHABLE",
	} {
		err := c.Explain("get job", status.Error(codes.Unavailable, text))
		if errs.ReasonOf(err) != want || want == "OVERLOADED" && !strings.HasSuffix(err.Error(), "OVERLOADED: ann has 2 connections open already") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
