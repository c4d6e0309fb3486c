package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
	"github.com/droverhq/drover/test/rawh2"
)

// strangerRoom is what all strangers together may make a daemon grow by.
const strangerRoom = 16 << 20

// nobody is TLS without a certificate.
func nobody() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13} //nolint:gosec // a stranger
}

// addressOf asks the scheduler where a worker listens.
func addressOf(t *testing.T, c *cluster.Cluster, worker string) string {
	t.Helper()
	_, rest, ok := strings.Cut(c.Must("workers", "show", worker, "-o", "json"), `"address": "`)
	address, _, _ := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("no address of %s", worker)
	}
	return address
}

// processorTime is what a daemon has used, in ticks of 10 ms.
func processorTime(t *testing.T, d *cluster.Daemon) time.Duration {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.PID()), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// watchMemory looks at daemons until the test says so, and returns by how much each
// grew at most.
func watchMemory(t *testing.T, daemons ...*cluster.Daemon) (stop func() []int) {
	t.Helper()
	before, most := make([]int, len(daemons)), make([]int, len(daemons))
	for i, d := range daemons {
		before[i] = use(t, d).memory
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			for i, d := range daemons {
				most[i] = max(most[i], use(t, d).memory-before[i])
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return func() []int {
		close(end)
		<-ended
		return most
	}
}

// halves opens so many calls and sends of each request as much as the server takes.
func halves(conn *rawh2.Conn, calls int, methods ...string) {
	for i := range calls {
		stream, err := conn.Open(methods[i%len(methods)])
		if err != nil || conn.Half(stream, 8<<20-8, 60<<10) != nil {
			return // the server has hung up
		}
	}
}

// TestP21_StrangersTakeNextToNoMemory: calls whose requests are half sent, and endless
// headers, without a certificate.
func TestP21_StrangersTakeNextToNoMemory(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), scripts()))
	c.Must("run", "ok.sh")
	methods := []string{
		droverv1.CertificateService_Join_FullMethodName, droverv1.SchedulerService_StartJob_FullMethodName,
		droverv1.SchedulerService_WatchEvents_FullMethodName, droverv1.WorkerService_Session_FullMethodName,
		droverv1.WorkerService_StartJob_FullMethodName, "/grpc.health.v1.Health/Watch", "/no.such.Service/Call",
	}
	for name, attack := range map[string]func(*rawh2.Conn){
		"500 half-sent requests on 10 connections": func(conn *rawh2.Conn) { halves(conn, 50, methods...) },
		"60 streams with 15 MB of metadata on 10 connections": func(conn *rawh2.Conn) {
			for range 6 {
				fields := []string{}
				for i := range 15 {
					fields = append(fields, fmt.Sprintf("x-%d", i), rawh2.Long(1<<20))
				}
				if _, err := conn.Open(methods[0], fields...); err != nil {
					return
				}
			}
		},
		"5,000 Joins at once on 10 connections": func(conn *rawh2.Conn) {
			for range 500 {
				if _, err := conn.Open(methods[0]); err != nil {
					return
				}
			}
		},
	} {
		stop := watchMemory(t, c.Scheduler, w)
		for _, address := range []string{c.Address, addressOf(t, c, "w1")} {
			var attackers sync.WaitGroup
			for range 10 {
				attackers.Go(func() {
					conn, err := rawh2.Dial(address, nobody())
					if err != nil {
						return // a worker does not talk to strangers
					}
					defer conn.Close()
					attack(conn)
					select {
					case <-conn.Done():
					case <-time.After(30 * time.Second):
						t.Errorf("%s: the connection stays: %+v", name, conn.Seen())
					}
				})
			}
			attackers.Wait()
		}
		for i, grown := range stop() {
			t.Logf("%s: daemon %d grew by %d KiB", name, i, grown>>10)
			if grown > strangerRoom {
				t.Errorf("%s: daemon %d grew by %d MiB", name, i, grown>>20)
			}
		}
	}
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
}

// rsaRequest is a certificate request with an RSA key of so many bytes, whose
// signature is no good.
func rsaRequest(t *testing.T, size int) []byte {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), uint(8*size)) //nolint:gosec // a size
	key, err := asn1.Marshal(struct {
		N *big.Int
		E int
	}{n.Sub(n, big.NewInt(1)), 1<<31 - 1})
	if err != nil {
		t.Fatal(err)
	}
	algorithm := func(last int) pkix.AlgorithmIdentifier {
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, last}, Parameters: asn1.NullRawValue}
	}
	bits := func(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }
	type publicKey struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	type info struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        publicKey
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{info{Key: publicKey{algorithm(1), bits(key)}}, algorithm(11), bits(n.Bytes())})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestP21_HugeKeysOfStrangersTakeNoProcessorTime, whether their token is good or not.
func TestP21_HugeKeysOfStrangersTakeNoProcessorTime(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	good := c.Must("certs", "token", "--ca", c.Path("ca"))
	pin, err := certs.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{128 << 10, 12 << 10} {
		der := rsaRequest(t, size)
		for _, token := range []string{"nonsense", good} {
			before := processorTime(t, c.Scheduler)
			for range 4 {
				conn, err := rpc.Dial(c.Address, certs.JoinConfig(pin.Pin))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := droverv1.NewCertificateServiceClient(conn).Join(t.Context(), &droverv1.JoinRequest{Token: token, Name: "w", Csr: der}); err == nil {
					t.Error("it was let in")
				}
				conn.Close()
			}
			if used := processorTime(t, c.Scheduler) - before; used >= 100*time.Millisecond {
				t.Errorf("four Joins with keys of %d bytes took %v of processor time", size, used)
			}
		}
	}
	if r := c.Run("certs", "join", good, "--name", "w9", "--out", c.Path("w9")); r.Code != 0 {
		t.Errorf("the token is no good any more: %+v", r)
	}
}

// idlers are strangers that connect, say something and wait, again whenever they are
// hung up on.
func idlers(address string, many int, say []byte) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			for ctx.Err() == nil {
				idle(ctx, address, say)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

func idle(ctx context.Context, address string, say []byte) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(say); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// TestP21_AFloodOfStrangersWithFewDescriptors_HoldsUpNothing: jobs are listed, started,
// stopped and read, workers stay ONLINE, people join, and a revocation is in force.
func TestP21_AFloodOfStrangersWithFewDescriptors_HoldsUpNothing(t *testing.T) {
	t.Parallel()
	for name, say := range map[string][]byte{
		"who say nothing":         nil,
		"who stop in their hello": {22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := cluster.NewWithFiles(t, bin, 256)
			w := c.Worker("w1", c.Scripts(c.Path("scripts"), scripts()), "--slots", "4")
			asleep := c.Must("run", "-d", "sleep.sh")
			eve := c.Issue("eve", certs.RoleViewer)
			want(t, c.RunAs(eve, "jobs", "-q"), 0, asleep+"\n", "")
			for _, address := range []string{c.Address, addressOf(t, c, "w1")} {
				defer idlers(address, 1000, say)()
			}
			for range 3 {
				began := time.Now()
				c.Must("jobs", "-q")
				want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
				if workers := c.Must("workers", "-o", "json"); !strings.Contains(workers, `"ONLINE"`) {
					t.Errorf("the worker is not ONLINE:\n%s", workers)
				}
				t.Logf("a round took %v", time.Since(began))
			}
			c.Must("certs", "revoke", "eve", "--ca", c.Path("ca"))
			began := time.Now()
			c.Eventually("the revocation is in force", func() bool {
				r := c.RunAs(eve, "jobs", "-q")
				return r.Code != 0 && strings.Contains(r.Stderr, "revoked")
			})
			t.Logf("it took %v", time.Since(began))
			tries := 0
			// Who joins has no identity yet, and may have to come again.
			c.Eventually("somebody joins", func() bool {
				tries++
				name := fmt.Sprint("new", tries)
				return c.Run("certs", "join", c.Must("certs", "token", "--ca", c.Path("ca")), "--name", name, "--out", c.Path(name)).Code == 0
			})
			c.Must("stop", "--grace", "0s", asleep)
			for _, d := range []*cluster.Daemon{c.Scheduler, w} {
				if n := use(t, d).files; n > 224 {
					t.Errorf("%s has %d descriptors of 256", d.Name, n)
				}
				if log, err := os.ReadFile(d.Log); err != nil || strings.Contains(string(log), "too many open files") {
					t.Errorf("the log of %s (%v):\n%s", d.Name, err, log)
				}
			}
		})
	}
}
