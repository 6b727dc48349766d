package disk

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// The test program runs itself for what needs a process of its own: to be
// killed, or to have a file system of its own.
func TestMain(m *testing.M) {
	switch os.Getenv("DISK_TEST_AS") {
	case "writer":
		writeForever(os.Getenv("DISK_TEST_DIR"))
	case "full":
		os.Exit(fillUp(os.Getenv("DISK_TEST_DIR")))
	}
	os.Exit(m.Run())
}

func again(as, dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DISK_TEST_AS="+as, "DISK_TEST_DIR="+dir, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// writeForever changes guests and says, after each change, which it was.
func writeForever(dir string) {
	s, err := Open(dir, WithSyncDelay(time.Millisecond))
	if err != nil {
		panic(err)
	}
	for i := 1; ; i++ {
		d := guest(fmt.Sprint("g", i%5), fabric.Live)
		d.VM.NICs[0].MTU = 1280 + i
		if err := s.Put(context.Background(), d); err != nil {
			panic(err)
		}
		if i%7 == 0 {
			if err := s.Delete(context.Background(), fmt.Sprint("g", (i+1)%5)); err != nil {
				panic(err)
			}
		}
		fmt.Println(i)
	}
}

func TestKilledWriterLosesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for range 20 {
		cmd := again("writer", dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		require.True(t, lines.Scan(), "the writer wrote nothing")
		time.AfterFunc(time.Duration(rand.IntN(int(20*time.Millisecond))), func() { cmd.Process.Kill() })
		last := lines.Text()
		for lines.Scan() {
			last = lines.Text()
		}
		cmd.Wait()

		s := open(t, dir)
		got, err := s.All(t.Context())
		require.NoError(t, err)
		acknowledged, err := strconv.Atoi(last)
		require.NoError(t, err)
		newest := 0
		for _, d := range got {
			newest = max(newest, d.VM.NICs[0].MTU-1280)
		}
		assert.GreaterOrEqual(t, newest, acknowledged, "a change that Put had returned from is gone")
		assert.Empty(t, s.Diagnose(t.Context()))
		require.NoError(t, s.Close())
		assert.Equal(t, settled(files(t, dir)), files(t, dir), "what was left over")
	}
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	cmd := again("full", t.TempDir())
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() == exitSkip {
		t.Skipf("no mount namespace of our own here: %v %s", err, out)
	}
	require.NoError(t, err, "%s", out)
}

const exitSkip = 77

// fillUp runs on a small file system of its own, in a mount namespace of its own.
func fillUp(dir string) (exit int) {
	fail := func(format string, args ...any) int {
		fmt.Printf(format+"\n", args...)
		return 1
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		fmt.Println(err)
		return exitSkip
	}
	s, err := Open(dir)
	if err != nil {
		return fail("%v", err)
	}
	if err := s.Put(context.Background(), guest("web", fabric.Wired)); err != nil {
		return fail("%v", err)
	}
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		return fail("%v", err)
	}
	for err == nil {
		_, err = hog.Write(make([]byte, 512))
	}
	hog.Close()

	expect := func(err error, text string) string {
		switch {
		case err == nil:
			return "no error"
		case !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n"):
			return err.Error()
		}
		if got, err := s.All(context.Background()); err != nil || len(got) != 1 || got[0].State != fabric.Wired {
			return fmt.Sprint("the old content is gone: ", got, err)
		}
		return ""
	}
	if told := s.Diagnose(context.Background()); len(told) > 0 {
		return fail("told of a disk on which nothing was written: %q", told)
	}
	if bad := expect(s.Put(context.Background(), guest("web", fabric.Live)), "no space left on device; free some space"); bad != "" {
		return fail("full: %s", bad)
	}
	if bad := tells(s, "state cannot be written, and guests that start are refused: ", "no space left on device; free some space"); bad != "" {
		return fail("full: %s", bad)
	}
	if err := s.Close(); err != nil {
		return fail("close on a full disk: %v", err)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fail("%v", err)
	}
	lock, err := Lock(dir)
	if err != nil {
		return fail("lock read-only: %v", err)
	}
	defer lock.Close()
	if s, err = Open(dir); err != nil {
		return fail("open read-only: %v", err)
	}
	if bad := expect(s.Put(context.Background(), guest("web", fabric.Live)), "read-only file system; mount that file system writable"); bad != "" {
		return fail("read-only: %s", bad)
	}
	if bad := expect(s.Delete(context.Background(), "web"), "read-only file system"); bad != "" {
		return fail("read-only: delete: %s", bad)
	}
	if bad := tells(s, "state cannot be written", "read-only file system; mount that file system writable"); bad != "" {
		return fail("read-only: %s", bad)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, ""); err != nil {
		return fail("%v", err)
	}
	if err := os.Remove(filepath.Join(dir, "hog")); err != nil {
		return fail("%v", err)
	}
	if told := s.Diagnose(context.Background()); len(told) > 0 {
		return fail("told of a disk with room: %q", told)
	}
	return 0
}

// tells returns what is wrong with what a store tells; it has one problem, with these words.
func tells(s *Store, words ...string) string {
	told := s.Diagnose(context.Background())
	if len(told) != 1 || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(told[0], w) }) {
		return fmt.Sprintf("told %q, without %q", told, words)
	}
	return ""
}

// TestDirectoryThatIsGone: that nothing can be kept is told before somebody tries.
func TestDirectoryThatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	assert.Empty(t, s.Diagnose(t.Context()))
	require.NoError(t, os.RemoveAll(dir))
	assert.Empty(t, tells(s, "guests that start are refused: ", "no such file or directory; somebody removed it; restart the agent"))
}
