package pluginhost_test

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
)

// forkerRole makes the test binary what forks as another user, which stops whatever it
// can, and collects garbage all the time.
const forkerRole = "DROVER_TEST_FORKER"

func forkerMain() {
	const uid = 64322 // of no other process on this machine
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	// kill(2) with -1 spares the one who calls it; the attacker ends by itself.
	attacker := exec.Command("/bin/bash", "-c", "while [ $SECONDS -lt 60 ]; do kill -STOP -1; done 2>/dev/null")
	attacker.SysProcAttr = as
	if err := attacker.Start(); err != nil {
		panic(err)
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
	for {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Credential: as.Credential}})
		if err != nil {
			panic(err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be stopped
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		if _, err := fmt.Println(pid); err != nil {
			return
		}
	}
}
