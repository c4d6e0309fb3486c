package rpc_test

import (
	"net"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
)

// Whoever restarts a killed scheduler at once may come before the kernel has closed
// what it listened on.
func TestAPortThatIsAboutToBeFreeIsWaitedFor(t *testing.T) {
	t.Parallel()
	before, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := before.Addr().String()
	_, err = rpc.Listen(address)
	if errs.KindOf(err) != errs.Precondition || errs.ReasonOf(err) != "LISTEN" {
		t.Errorf("a port that stays in use: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		port, err := rpc.Listen(address)
		if err == nil {
			err = port.Close()
		}
		got <- err
	}()
	select { // it has been refused by now, and goes on
	case err := <-got:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("a port that was freed meanwhile: %v", err)
	}
}
