package process

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/runner"
)

// limiterName is what this program is called when it is to set limits and nothing else.
const limiterName = "drover-limiter"

// limiterPatience is how long that may take: the user of the job can stop the process.
const limiterPatience = 2 * time.Second

// setLimits sets the limits of a process that has executed nothing yet; c is who it runs
// as, nil is this process's own user.
func setLimits(pid int, c *syscall.Credential, limits []runner.Rlimit) error {
	for i, l := range limits {
		err := unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Value, Max: l.Value}, nil)
		if errors.Is(err, unix.EPERM) && c != nil {
			return setLimitsAs(pid, c, limits[i:])
		}
		if err != nil {
			return limitRefused(l, err)
		}
	}
	return nil
}

// setLimitsAs has the limits set by a process whose real user is that of the job: the
// kernel lets such a process lower them, and any other one only with CAP_SYS_RESOURCE
// (prlimit(2)), which root has not in most containers. A thread of this process would
// do, if the job's user could not kill whatever has its real user, and this process with
// it.
func setLimitsAs(pid int, c *syscall.Credential, limits []runner.Rlimit) error {
	answer := make(chan error, 1)
	// On another thread: the caller's is in the cgroups of the job.
	go func() { answer <- runLimiter(pid, c, limits) }()
	return <-answer
}

func runLimiter(pid int, c *syscall.Credential, limits []runner.Rlimit) error {
	read, write, err := os.Pipe()
	if err != nil {
		return &runner.StartError{Reason: runner.Resource, Message: fmt.Sprintf("set rlimits: %v", err)}
	}
	defer read.Close()
	argv := []string{limiterName, strconv.Itoa(pid), strconv.Itoa(int(c.Uid)), strconv.Itoa(int(c.Gid))}
	for _, l := range limits {
		argv = append(argv, fmt.Sprintf("%d=%d", l.Resource, l.Value))
	}
	// The reaper takes it, like any child that it does not know; not before this start is
	// over, so the number is nobody else's until then.
	helper, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: []uintptr{write.Fd(), write.Fd(), write.Fd()}})
	_ = write.Close()
	if err != nil {
		return &runner.StartError{Reason: runner.Resource, Message: fmt.Sprintf("set rlimits: start a process for it: %v", err)}
	}
	_ = read.SetReadDeadline(time.Now().Add(limiterPatience)) // pipes can have one
	line, err := bufio.NewReader(read).ReadString('\n')
	_ = syscall.Kill(helper, syscall.SIGKILL) // it has answered, or will not
	var set, errno int
	if _, bad := fmt.Sscanf(line, "%d %d\n", &set, &errno); err != nil || bad != nil || set > len(limits) {
		return &runner.StartError{Reason: runner.Internal, Message: fmt.Sprintf("set rlimits: the process that was to do it said %q: %v", line, err)}
	}
	if set < len(limits) {
		return limitRefused(limits[set], syscall.Errno(errno))
	}
	return nil
}

// limiter is the whole life of such a process. It says how many limits it has set, and
// why not the next one. It keeps all its rights, so no user but root can change what it
// does.
func limiter(args []string) int {
	numbers := make([]int, 3)
	for i := range numbers {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			return 1
		}
		numbers[i] = n
	}
	pid, uid, gid := numbers[0], numbers[1], numbers[2]
	err := unix.Setresgid(gid, -1, -1)
	if err == nil {
		err = unix.Setresuid(uid, -1, -1)
	}
	set := 0
	for _, l := range args[3:] {
		if err != nil {
			break
		}
		resource, value, _ := strings.Cut(l, "=")
		n, _ := strconv.Atoi(resource) // as the caller has written it
		v, _ := strconv.ParseUint(value, 10, 64)
		if err = unix.Prlimit(pid, n, &unix.Rlimit{Cur: v, Max: v}, nil); err == nil {
			set++
		}
	}
	var errno syscall.Errno
	_ = errors.As(err, &errno) // 0 when all are set
	fmt.Printf("%d %d\n", set, int(errno))
	return 0
}

// limitRefused says which limit could not be set, as a policy calls it, and why.
func limitRefused(l runner.Rlimit, err error) error {
	value := strconv.FormatUint(l.Value, 10)
	if l.Value == math.MaxUint64 {
		value = "unlimited"
	}
	message := fmt.Sprintf("rlimits.%s: set it to %s: %v", limitName(l.Resource), value, err)
	var own unix.Rlimit
	if errors.Is(err, unix.EPERM) && unix.Prlimit(0, l.Resource, nil, &own) == nil && l.Value > own.Max {
		message += fmt.Sprintf(": the worker's own limit is %d, and whoever goes beyond it needs CAP_SYS_RESOURCE", own.Max)
	}
	return &runner.StartError{Reason: runner.Resource, Message: message}
}

// limitName is the name of a limit in a policy.
func limitName(resource int) string {
	name, ok := map[int]string{
		unix.RLIMIT_AS: "as", unix.RLIMIT_CORE: "core", unix.RLIMIT_CPU: "cpu", unix.RLIMIT_DATA: "data", unix.RLIMIT_FSIZE: "fsize",
		unix.RLIMIT_MEMLOCK: "memlock", unix.RLIMIT_NOFILE: "nofile", unix.RLIMIT_NPROC: "nproc", unix.RLIMIT_STACK: "stack",
	}[resource]
	if !ok {
		return strconv.Itoa(resource)
	}
	return name
}
