package certs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/certs"
)

// redeemer makes the test binary a process that redeems one token once it is
// told to, and says how that went.
const redeemer = "DROVER_TEST_REDEEM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(redeemer); dir != "" {
		redeemInProcess(dir, os.Args[1], os.Args[2])
		return
	}
	goleak.VerifyTestMain(m)
}

func redeemInProcess(dir, token, name string) {
	ca, err := certs.OpenCA(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, csr, err := certs.NewRequest()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	_, _, err = ca.Redeem(context.Background(), token, name, csr, time.Now())
	switch {
	case err == nil:
		fmt.Println("won")
	case errors.Is(err, certs.ErrToken):
		fmt.Println("lost")
	default:
		fmt.Println(err)
	}
}

// TestTokenIsGoodOnceAcrossProcesses: of several processes that redeem the same
// token at the same time exactly one gets a certificate.
func TestTokenIsGoodOnceAcrossProcesses(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const processes = 4
	var starts []func()
	outputs := make([]*bufio.Scanner, processes)
	for i := range processes {
		cmd := exec.Command(os.Args[0], token, fmt.Sprintf("w%d", i))
		cmd.Env = append(os.Environ(), redeemer+"="+dir)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Wait() })
		outputs[i] = bufio.NewScanner(out)
		starts = append(starts, func() { in.Write([]byte("\n")) })
	}
	for _, out := range outputs {
		if !out.Scan() || out.Text() != "ready" {
			t.Fatalf("a process said %q", out.Text())
		}
	}
	for _, start := range starts {
		start()
	}
	count := map[string]int{}
	for _, out := range outputs {
		out.Scan()
		count[out.Text()]++
	}
	if count["won"] != 1 || count["lost"] != processes-1 {
		t.Errorf("%v, want one winner of %d", count, processes)
	}
	if issued, err := ca.List(); err != nil || len(issued) != 1 {
		t.Errorf("%d certificates were issued, %v", len(issued), err)
	}
}
