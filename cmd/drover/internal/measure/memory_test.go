package measure_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/droverhq/drover/cmd/drover/internal/measure"
)

// TestMemoryOfAProcessIsItsOwnPart: this test process holds 32 MiB, its child
// next to nothing.
func TestMemoryOfAProcessIsItsOwnPart(t *testing.T) {
	t.Parallel()
	big := make([]byte, 32<<20)
	for i := 0; i < len(big); i += 4096 {
		big[i] = 1
	}
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	m, err := measure.ReadMemory([]measure.Process{
		{Role: "tester", Name: "t", PID: os.Getpid()}, {Role: "child", Name: "c", PID: child.Process.Pid},
	})
	if err != nil {
		t.Fatal(err)
	}
	own, other := m.Processes[0], m.Processes[1]
	if own.Role != "tester" || other.Name != "c" || m.PSSKB != own.PSSKB+other.PSSKB {
		t.Errorf("got %+v", m)
	}
	if own.AnonKB < 32<<10 || own.PSSKB < own.AnonKB+own.FileKB/2 {
		t.Errorf("this process: %+v", own)
	}
	if other.AnonKB <= 0 || other.AnonKB > 4<<10 {
		t.Errorf("sleep: %+v", other)
	}
	if big[4096] != 1 {
		t.Error("unreachable: it is kept until here")
	}
}

func TestMemoryPerJobIsTheGrowthOfAll(t *testing.T) {
	t.Parallel()
	if got := measure.PerJob(measure.Memory{PSSKB: 50_000}, measure.Memory{PSSKB: 67_000}, 1000); got != 17 {
		t.Errorf("got %v", got)
	}
}

func TestAProcessThatIsGoneIsNamed(t *testing.T) {
	t.Parallel()
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := measure.ReadMemory([]measure.Process{{Name: "gone", PID: child.Process.Pid}}); err == nil {
		t.Error("no error")
	}
}
