package e2e_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"testing"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// direct is a person who speaks to a worker without the scheduler.
type direct struct {
	conn   *grpc.ClientConn
	source *certs.Source
	worker string // address
}

func dialDirect(t *testing.T, c *cluster.Cluster, worker, certsDir string) *direct {
	t.Helper()
	var shown struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(c.Must("workers", "show", worker, "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(certsDir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{source: source, worker: shown.Address}
	d.conn = d.dial(t)
	return d
}

func (d *direct) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(d.worker, d.source.ClientConfig(certs.RoleWorker, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// follow reads the output of a job until it ends, and returns when it has begun.
func (d *direct) follow(t *testing.T, id string) <-chan error {
	t.Helper()
	stream, err := droverv1.NewWorkerServiceClient(d.conn).StreamOutput(t.Context(), &droverv1.WorkerServiceStreamOutputRequest{JobId: id, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
		}
	}()
	return ended
}

// refusal says why a new connection is refused; "" when it is not, or not clear.
func (d *direct) refusal(t *testing.T) string {
	t.Helper()
	conn := d.dial(t)
	_, err := droverv1.NewWorkerServiceClient(conn).GetJob(t.Context(), &droverv1.WorkerServiceGetJobRequest{})
	return certs.Explain(err)
}
