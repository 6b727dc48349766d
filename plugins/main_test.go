package plugins_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/plugins/internal/testplugin"
)

// patience is for what must happen, on a machine that does much else.
const patience = 60 * time.Second

// binary is the path of a program that is the plugin of package testplugin: this test
// program under another name.
var binary string

// asPlugin is set in the processes that are the plugin.
const asPlugin = "PLUGINS_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPlugin) != "" {
		testplugin.Main()
		return
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "plugins-test")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "testplugin")
	if os.Link(self, binary) != nil { // it is on another file system
		program, err := os.ReadFile(self)
		if err == nil {
			err = executable.Write(binary, program)
		}
		if err != nil {
			return 1, err
		}
	}
	for _, set := range []string{asPlugin + "=1", "GORACE=atexit_sleep_ms=0"} {
		name, value, _ := strings.Cut(set, "=")
		if err := os.Setenv(name, value); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// specimen is a test plugin, and how to reach it behind its host's back.
type specimen struct {
	dir string
	log bytes.Buffer
	mu  sync.Mutex
}

// Write takes the host's log.
func (s *specimen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *specimen) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func newSpecimen(t *testing.T) *specimen {
	dir, err := os.MkdirTemp("", "specimen") // short: a socket is in it
	require.NoError(t, err)
	s := &specimen{dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%.20000s", s.logged())
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	return s
}

// program is the specimen's, with a mode of package testplugin.
func (s *specimen) program(mode string, env ...string) plugins.Program {
	return plugins.Program{Path: binary, Env: append(env, "TESTPLUGIN_DIR="+s.dir, "TESTPLUGIN_MODE="+mode)}
}

func (s *specimen) options(times plugins.Times) []plugins.Option {
	return []plugins.Option{
		plugins.WithLogger(slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		plugins.WithTimes(times),
	}
}

func (s *specimen) openSpeaker(t *testing.T, mode string, times plugins.Times) *plugins.Speaker {
	t.Helper()
	sp, err := plugins.OpenSpeaker(t.Context(), s.program(mode), s.options(times)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sp.Close()) })
	return sp
}

type command = testplugin.Command

// tell has the plugin do something.
func (s *specimen) tell(t *testing.T, c command) (answer command) {
	t.Helper()
	var conn net.Conn
	eventually(t, "the plugin's control socket", func() (err error) {
		conn, err = net.Dial("unix", filepath.Join(s.dir, "control"))
		return err
	})
	defer conn.Close()
	require.NoError(t, json.NewEncoder(conn).Encode(c))
	err := json.NewDecoder(conn).Decode(&answer)
	if !slices.Contains([]string{"exit", "panic"}, c.Do) {
		require.NoError(t, err)
	}
	return answer
}

// pid is the process number of the plugin as it says itself.
func (s *specimen) pid(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(b))
	require.NoError(t, err)
	return pid
}

// awaitAnother waits until the plugin has another number than before.
func (s *specimen) awaitAnother(t *testing.T, before int) int {
	t.Helper()
	var pid int
	eventually(t, "the plugin is started anew", func() error {
		b, err := os.ReadFile(filepath.Join(s.dir, "pid"))
		if err == nil {
			pid, err = strconv.Atoi(string(b))
		}
		if err == nil && (pid == before || !alive(pid)) {
			err = fmt.Errorf("it is %d, %d before", pid, before)
		}
		return err
	})
	return pid
}

// alive reports whether a process runs, and is not only waited for.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state := stat[bytes.LastIndexByte(stat, ')')+2]
	return state != 'Z' && state != 'X'
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d ends", pid), func() error {
		if alive(pid) {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func signalled(t *testing.T, c <-chan struct{}, after string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		require.FailNow(t, "Changed did not fire after "+after)
	}
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, sig))
}
