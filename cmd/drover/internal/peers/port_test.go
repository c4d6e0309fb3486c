package peers

import (
	"fmt"
	"os"
	"testing"
)

// TestAPortIsNoneOfTheKernels: what listens on any port, beside a peer that is being
// started, must not get the peer's.
func TestAPortIsNoneOfTheKernels(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var from, to int
	if _, err := fmt.Sscan(string(text), &from, &to); err != nil {
		t.Fatal(err)
	}
	if from < 32_768 {
		t.Skipf("this machine gives out %d to %d", from, to)
	}
	for range 50 {
		if port, err := freePort(); err != nil || port >= from && port <= to {
			t.Fatalf("port %d, %v; the kernel gives %d to %d", port, err, from, to)
		}
	}
}
