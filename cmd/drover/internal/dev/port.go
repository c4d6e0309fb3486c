package dev

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// Ports that are dealt out by nobody: above the system's and most services', and
// below those of outgoing connections, which begin here unless the host says
// otherwise (ip(7), ip_local_port_range).
const (
	spareFrom = 10000
	spareTo   = 32768
)

// spareAddress returns an address of this machine that a scheduler can listen on
// again and again. A port of outgoing connections could be somebody's while the
// scheduler is away, and the well-known one is for clusters that stay.
func spareAddress() (string, error) {
	below := spareTo
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var from, to int
		if n, _ := fmt.Sscan(string(data), &from, &to); n == 2 && from > spareFrom {
			below = from
		}
	}
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(spareFrom+rand.N(below-spareFrom)))
		if free(address) {
			return address, nil
		}
	}
	return "", fmt.Errorf("look for a port between %d and %d that is free: 100 were not", spareFrom, below)
}
