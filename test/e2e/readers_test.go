package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// What a reader that stands still may cost each daemon, and what else a daemon may grow by
// while they come.
const (
	idleReaderCost = 64 << 10
	idleReaderRoom = 16 << 20
)

// idleReaders are clients that take what is there for a while, and then nothing.
type idleReaders struct {
	t       *testing.T
	streams []grpc.ServerStreamingClient[droverv1.StreamOutputResponse]
}

// open opens n reads of an output as several identities; each takes so many bytes.
func (r *idleReaders) open(c *cluster.Cluster, id string, n int, take int) {
	r.t.Helper()
	var clients []droverv1.SchedulerServiceClient
	for i := range 4 {
		source, err := certs.NewSource(c.Issue(fmt.Sprintf("idle%d-%d", len(r.streams), i/2), certs.RoleOperator), slog.New(slog.DiscardHandler))
		if err != nil {
			r.t.Fatal(err)
		}
		conn, err := rpc.Dial(c.Address, source.ClientConfig(certs.RoleScheduler, ""))
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = conn.Close() })
		clients = append(clients, droverv1.NewSchedulerServiceClient(conn))
	}
	for i := range n {
		s, err := clients[i%4].StreamOutput(r.t.Context(), &droverv1.StreamOutputRequest{JobId: id, Follow: true})
		if err != nil {
			r.t.Fatal(err)
		}
		for got := 0; got < take; {
			m, err := s.Recv()
			if err != nil {
				r.t.Fatal(err)
			}
			got += len(m.GetChunk().GetData())
		}
		r.streams = append(r.streams, s)
	}
}

// TestP16_IdleReaders_CostLittle: what a reader has not taken stays in the file, whether
// it has taken anything or not. Others read on, and with the job they all end.
// DROVER_LONG=1 has 1,000 of them, of 2 GiB.
func TestP16_IdleReaders_CostLittle(t *testing.T) {
	t.Parallel()
	readers, size := 100, 64<<20
	if os.Getenv("DROVER_LONG") != "" {
		readers, size = 500, 2<<30
	}
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"much.sh": fmt.Sprintf("head -c %d /dev/zero\n", size)}), "--output-quota", "4096")
	id := strings.TrimSpace(c.Must("run", "-d", "--output-policy", "keep", "much.sh"))
	c.Eventually("it ends", func() bool { return status(t, c, id).State == "SUCCEEDED" })
	daemons := map[string]*cluster.Daemon{"scheduler": c.Scheduler, "worker": w}
	before := map[string]int{}
	for name, d := range daemons {
		before[name] = heldMemory(t, d)
	}
	idle := &idleReaders{t: t}
	look := func(what string, n int) {
		t.Helper()
		time.Sleep(8 * time.Second) // what is on its way comes, and garbage is given back
		for name, d := range daemons {
			grown := math.MaxInt
			for range 6 {
				grown = min(grown, heldMemory(t, d)-before[name])
				time.Sleep(500 * time.Millisecond)
			}
			if grown > n*idleReaderCost+idleReaderRoom {
				t.Errorf("%s: %d idle readers cost the %s %d KiB", what, n, name, grown>>10)
			}
			t.Logf("%s: %d idle readers cost the %s %d KiB, %d each", what, n, name, grown>>10, grown>>10/n)
		}
	}
	idle.open(c, id, readers, 0)
	look("they have read nothing", readers)
	idle.open(c, id, readers, 4<<20)
	look("half of them have read 4 MiB", 2*readers)
	if got, want := sumOf(t, c, id), status(t, c, id).Stdout.SHA256; got != want {
		t.Errorf("another reader reads %s, the record says %s", got, want)
	}
	c.Must("jobs", "rm", id)
	var wait sync.WaitGroup
	for i, s := range idle.streams {
		wait.Go(func() {
			for {
				if _, err := s.Recv(); err != nil {
					if reason := errs.ReasonOf(rpc.FromStatus("read", err)); reason != output.ReasonGone {
						t.Errorf("reader %d of a removed job ends with %q: %v", i, reason, err)
					}
					return
				}
			}
		})
	}
	wait.Wait()
}

// sumOf reads the standard output of a job.
func sumOf(t *testing.T, c *cluster.Cluster, id string) string {
	t.Helper()
	cmd := c.Command(context.Background(), "logs", "--stdout", id)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, out); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
