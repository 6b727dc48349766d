package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// jumps sets the clock of an agent's process, by so much, and that of nobody else. A time
// namespace has the clocks alone that do not jump, and no library is loaded before a static
// program's own; but the code by which a process reads the clock (vdso(7)) is memory of
// its own once somebody writes to it.
func (a *agent) jumps(by time.Duration) {
	t := a.s.t
	t.Helper()
	a.jumped += by
	require.NoError(t, a.Signal(syscall.SIGSTOP))
	defer func() { require.NoError(t, a.Signal(syscall.SIGCONT)) }()
	a.eventually("the clock is set", func() error {
		err := setClock(a.Pid(), a.jumped)
		if errors.Is(err, errBusyClock) {
			_, _ = a.Signal(syscall.SIGCONT), a.Signal(syscall.SIGSTOP)
		}
		return err
	})
}

// canJump says whether jumps knows the machine's code.
const canJump = runtime.GOARCH == "amd64"

// errBusyClock says that a thread was just reading the clock.
var errBusyClock = errors.New("a thread reads the clock")

// setClock has all threads of a process that is stopped read a clock that is ahead.
func setClock(pid int, ahead time.Duration) error {
	from, to, err := vdsoOf(pid)
	if err != nil {
		return err
	}
	if err := leftVDSO(pid, from, to); err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, int64(from)); err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return err
	}
	code := clockAhead(ahead)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(code)) {
			_, err := mem.WriteAt(code, int64(from+s.Value))
			return err
		}
	}
	return errors.New("the vDSO has no clock_gettime")
}

// clockAhead is clock_gettime(2) by a system call, for x86-64; to CLOCK_REALTIME it adds
// seconds.
func clockAhead(by time.Duration) []byte {
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 13, // jne to the end
		0x48, 0xb9, // mov rcx, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(int64(by/time.Second)))
	return append(code, 0x48, 0x01, 0x0e, 0xc3) // add [rsi], rcx; ret
}

// vdsoOf finds the vDSO of a process (proc_pid_maps(5)).
func vdsoOf(pid int) (from, to uint64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			_, err = fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, errors.New("no vDSO")
}

// leftVDSO checks that all threads have stopped, and none inside of the vDSO
// (proc_pid_syscall(5)).
func leftVDSO(pid int, from, to uint64) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return err
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		words := strings.Fields(string(text))
		if slices.Contains(words, "running") {
			return fmt.Errorf("%s: running", file)
		}
		at, err := strconv.ParseUint(strings.TrimPrefix(words[len(words)-1], "0x"), 16, 64)
		if err != nil {
			return err
		}
		if at >= from && at < to {
			return errBusyClock
		}
	}
	return nil
}

// TestClockOfAProcess: what the tests take for a jump of a clock is one, of that process
// alone.
func TestClockOfAProcess(t *testing.T) {
	t.Parallel()
	if !canJump {
		t.Skip("the code that reads the clock is for x86-64")
	}
	s := start(t, options{noRR: true})
	a := s.agents["node1"]
	for _, by := range []time.Duration{time.Hour, -3 * time.Hour} {
		a.jumps(by)
		log, began := len(a.Log()), time.Now()
		web := veth("web", "203.0.113.10", "2001:db8:100::10")
		a.ask(hooks.Wire, web)
		a.ask(hooks.Remove, web)
		require.NoError(t, core.Until(soon(t), func() error {
			return saysAt(a.Log()[log:], began.Add(a.jumped))
		}))
	}
}

// saysAt looks for a line of a log that was written within a minute of a time.
func saysAt(log string, at time.Time) error {
	for line := range strings.Lines(log) {
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if is, err := time.Parse(time.RFC3339, stamp); err == nil && is.Sub(at).Abs() < time.Minute {
			return nil
		}
	}
	return fmt.Errorf("no line of about %s: %s", at, log)
}
