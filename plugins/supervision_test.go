package plugins_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var both = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

func bothRoutes() []fabric.Route {
	return []fabric.Route{{Prefix: both[0], Preference: fabric.Fresh}, {Prefix: both[1]}}
}

// TestDies has a plugin die in every way. Each time it comes back empty, says
// so, and takes everything again.
func TestDies(t *testing.T) {
	for name, die := range map[string]struct {
		do     func(t *testing.T, s *specimen, pid int)
		reason string
	}{
		"by SIGKILL": {func(t *testing.T, _ *specimen, pid int) { kill(t, pid, syscall.SIGKILL) }, "signal: killed"},
		"by SIGTERM": {func(t *testing.T, _ *specimen, pid int) { kill(t, pid, syscall.SIGTERM) }, "it ended"},
		"by itself":  {func(t *testing.T, s *specimen, _ int) { s.tell(t, command{Do: "exit"}) }, "exit status 4"},
		"in panic": {
			func(t *testing.T, s *specimen, _ int) { s.tell(t, command{Do: "panic", What: "at the disco"}) },
			`exit status 2, saying \"panic: at the disco`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpecimen(t)
			labtest.EndsItsGoroutines(t)
			sp, err := plugins.OpenSpeaker(t.Context(), s.program(""), s.options(plugins.Times{Wait: patience})...)
			require.NoError(t, err)
			for range 2 {
				require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
				pid := s.pid(t)
				die.do(t, s, pid)
				awaitEnd(t, pid)
				signalled(t, sp.Changed(), "the death of the plugin")
				s.awaitAnother(t, pid)
				var routes []fabric.Route
				eventually(t, "Actual", func() (err error) { // a call that it dies in fails
					routes, err = sp.Actual(t.Context())
					return err
				})
				assert.Empty(t, routes)
				require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
				routes, err = sp.Actual(t.Context())
				require.NoError(t, err)
				assert.ElementsMatch(t, bothRoutes(), routes)
			}
			assert.Contains(t, s.logged(), die.reason)

			s.tell(t, command{Do: "lose", What: both[0].String()})
			signalled(t, sp.Changed(), "a change in the new plugin")
			pid := s.pid(t)
			require.NoError(t, sp.Close())
			assert.False(t, alive(pid))
		})
	}
}

// TestHangs has a plugin hang in every way. It is noticed, killed, and another
// one is there.
func TestHangs(t *testing.T) {
	labtest.Long(t)
	second := plugins.Times{Call: time.Second, Check: patience, Wait: patience}
	checked := plugins.Times{Call: time.Second, Check: 100 * time.Millisecond, Wait: patience}
	put := func(ctx context.Context, sp *plugins.Speaker) error { return sp.Put(ctx, bothRoutes()...) }
	for name, tc := range map[string]struct {
		times  plugins.Times
		hang   func(t *testing.T, s *specimen, sp *plugins.Speaker, pid int)
		reason string
	}{
		"stopped, seen by a check": {checked, func(t *testing.T, _ *specimen, _ *plugins.Speaker, pid int) {
			kill(t, pid, syscall.SIGSTOP)
		}, "it hangs: no sign of life within 1s"},
		"stopped, seen by a call": {second, func(t *testing.T, _ *specimen, sp *plugins.Speaker, pid int) {
			kill(t, pid, syscall.SIGSTOP)
			stopped(t, pid)
			err := put(t.Context(), sp)
			require.EqualError(t, err, "plugin testplugin: announce 203.0.113.10/32: no answer within 1s; it is being killed and started anew")
		}, "it hangs: no answer within 1s when asked to announce 203.0.113.10/32"},
		"a deadlock in it": {second, func(t *testing.T, s *specimen, sp *plugins.Speaker, _ int) {
			s.tell(t, command{Do: "deaf"})
			require.ErrorContains(t, put(t.Context(), sp), "no answer within 1s")
		}, "no answer within 1s when asked to announce"},
		"a deadlock, and callers in a hurry": {plugins.Times{Call: patience, Check: patience, Wait: patience}, func(t *testing.T, s *specimen, sp *plugins.Speaker, _ int) {
			s.tell(t, command{Do: "deaf"})
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				require.ErrorIs(t, put(ctx, sp), context.DeadlineExceeded)
				cancel()
			}
		}, "it hangs: 3 calls in a row without an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSpecimen(t)
			sp := s.openSpeaker(t, "", tc.times)
			pid := s.pid(t)
			tc.hang(t, s, sp, pid)
			awaitEnd(t, pid)
			signalled(t, sp.Changed(), "the plugin was killed")
			s.awaitAnother(t, pid)
			require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
			routes, err := sp.Actual(t.Context())
			require.NoError(t, err)
			assert.ElementsMatch(t, bothRoutes(), routes)
			assert.Contains(t, s.logged(), tc.reason)
		})
	}
}

// TestIll has a plugin say itself that it is to be started anew.
func TestIll(t *testing.T) {
	s := newSpecimen(t)
	s.openSpeaker(t, "foreign=ill", plugins.Times{Check: 50 * time.Millisecond})
	pid := s.pid(t)
	awaitEnd(t, pid)
	s.awaitAnother(t, pid)
	assert.Contains(t, s.logged(), "it says that it is NOT_SERVING")
}

// TestSlowIsNotDead has callers give up now and then, and one answer between.
func TestSlowIsNotDead(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{})
	pid := s.pid(t)
	for range 4 {
		s.tell(t, command{Do: "hang", What: "announce"})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		require.ErrorIs(t, sp.Put(ctx, bothRoutes()...), context.DeadlineExceeded)
		cancel()
		s.tell(t, command{Do: "release", What: "announce"})
		require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		require.ErrorIs(t, sp.Put(ctx, bothRoutes()...), context.Canceled)
	}
	require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
	assert.Equal(t, pid, s.pid(t))
	assert.True(t, alive(pid))
}

// TestErrorsAreOneLine also has an error in the plugin leave it alone.
func TestErrorsAreOneLine(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{})
	pid := s.pid(t)
	s.tell(t, command{Do: "fail", What: "announce"})
	for range 5 {
		require.EqualError(t, sp.Put(t.Context(), bothRoutes()...), "plugin testplugin: the daemon is away:; start it")
	}
	s.tell(t, command{Do: "trouble", What: "BIRD is away;\nstart it"})
	assert.Equal(t, []string{"BIRD is away;; start it"}, sp.Diagnose(t.Context()))
	s.tell(t, command{Do: "session", What: "rr1"})
	sessions, err := sp.Sessions(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []fabric.Session{{Peer: "rr1", Address: "10.10.0.11", State: "active", Advertised: 3}}, sessions)
	assert.Equal(t, pid, s.pid(t))
}

// TestPutWhileItRestarts has many guests come while a plugin dies again and
// again: each is told in bounded time.
func TestPutWhileItRestarts(t *testing.T) {
	labtest.Long(t)
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{Wait: 300 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var longest sync.Map
	for i := range 8 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)
		callers.Go(func() {
			var most time.Duration
			for ctx.Err() == nil {
				began := time.Now()
				if err := sp.Put(ctx, fabric.Route{Prefix: p}); err != nil {
					assert.NotContains(t, err.Error(), "\n")
					assert.Contains(t, err.Error(), "plugin testplugin")
				}
				most = max(most, time.Since(began))
			}
			longest.Store(i, most)
		})
	}
	pid := s.pid(t)
	for range 4 {
		kill(t, pid, syscall.SIGKILL)
		pid = s.awaitAnother(t, pid)
	}
	cancel()
	callers.Wait()
	longest.Range(func(_, most any) bool {
		assert.Less(t, most, 15*time.Second, "the bounds of a call are 10 s, and 300 ms for the wait") // a busy machine
		return true
	})
	eventually(t, "all is well", func() error { return sp.Put(t.Context(), bothRoutes()...) })
}

// TestDown has a plugin that cannot be started again.
func TestDown(t *testing.T) {
	s := newSpecimen(t)
	program := filepath.Join(s.dir, "mine")
	require.NoError(t, os.Link(binary, program))
	p := s.program("")
	p.Path = program
	sp, err := plugins.OpenSpeaker(t.Context(), p, s.options(plugins.Times{Wait: 200 * time.Millisecond})...)
	require.NoError(t, err)
	defer sp.Close()
	assert.Empty(t, sp.Diagnose(t.Context()))
	require.NoError(t, os.Rename(program, program+".away"))
	kill(t, s.pid(t), syscall.SIGKILL)

	down := "plugin mine (" + program + ") is down since "
	eventually(t, "it is known to be down", func() error {
		d := sp.Diagnose(t.Context())
		if len(d) != 1 || !strings.HasPrefix(d[0], down) || !strings.Contains(d[0], "there is no such file; install it") {
			return fmt.Errorf("%q", d)
		}
		return nil
	})
	err = sp.Put(t.Context(), bothRoutes()...)
	require.ErrorContains(t, err, down)
	assert.Regexp(t, `; (restarting it, next try in [0-9.]+m?s|being restarted now)$`, err.Error())
	_, err = sp.Sessions(t.Context())
	require.ErrorContains(t, err, down)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = sp.Actual(short)
	require.ErrorContains(t, err, down)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.NoError(t, os.Rename(program+".away", program))
	signalled(t, sp.Changed(), "the plugin is back")
	eventually(t, "it works", func() error { return sp.Put(t.Context(), bothRoutes()...) })
	assert.Empty(t, sp.Diagnose(t.Context()))
}

// TestRetry has a plugin that could not be started first.
func TestRetry(t *testing.T) {
	s := newSpecimen(t)
	program := filepath.Join(s.dir, "mine")
	p := s.program("")
	p.Path = program
	labtest.EndsItsGoroutines(t)
	sp, err := plugins.OpenSpeaker(t.Context(), p, append(s.options(plugins.Times{Wait: 100 * time.Millisecond}), plugins.WithRetry())...)
	require.NoError(t, err)
	require.ErrorContains(t, sp.Put(t.Context(), bothRoutes()...), "there is no such file; install it")
	require.Len(t, sp.Diagnose(t.Context()), 1)
	require.NoError(t, os.Link(binary, program))
	signalled(t, sp.Changed(), "the plugin has come")
	eventually(t, "it works", func() error { return sp.Put(t.Context(), bothRoutes()...) })
	assert.Empty(t, sp.Diagnose(t.Context()))
	require.NoError(t, sp.Close())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = plugins.OpenSpeaker(ctx, p, plugins.WithRetry())
	require.ErrorIs(t, err, context.Canceled)
}

func TestCloseWhileItIsDown(t *testing.T) {
	s := newSpecimen(t)
	program := filepath.Join(s.dir, "mine")
	require.NoError(t, os.Link(binary, program))
	p := s.program("")
	p.Path = program
	labtest.EndsItsGoroutines(t)
	sp, err := plugins.OpenSpeaker(t.Context(), p, s.options(plugins.Times{Wait: patience})...)
	require.NoError(t, err)
	require.NoError(t, os.Remove(program))
	kill(t, s.pid(t), syscall.SIGKILL)
	signalledDown := func() error {
		if len(sp.Diagnose(t.Context())) == 0 {
			return errors.New("not down")
		}
		return nil
	}
	eventually(t, "it is down", signalledDown)
	waiting := make(chan error)
	go func() { waiting <- sp.Put(context.Background(), bothRoutes()...) }()
	require.NoError(t, sp.Close())
	require.ErrorIs(t, <-waiting, os.ErrClosed)
	require.ErrorIs(t, sp.Put(t.Context(), bothRoutes()...), os.ErrClosed)
	assert.Empty(t, sp.Diagnose(t.Context()))
	require.NoError(t, sp.Close(), "again")
}

// TestClose has plugins end in order.
func TestClose(t *testing.T) {
	for _, mode := range []string{"", "mark", "flood"} {
		t.Run("mode "+mode, func(t *testing.T) { closes(t, mode) })
	}
}

// TestCloseKills has plugins that do not end in time be killed.
func TestCloseKills(t *testing.T) {
	labtest.Long(t)
	for _, mode := range []string{"stay", "stopped"} {
		t.Run("mode "+mode, func(t *testing.T) { closes(t, mode) })
	}
}

// closes checks that Close leaves neither a process nor a file nor a goroutine of a
// plugin behind.
func closes(t *testing.T, mode string) {
	t.Helper()
	s := newSpecimen(t)
	t.Setenv("TMPDIR", s.dir)
	labtest.EndsItsGoroutines(t)
	sp, err := plugins.OpenSpeaker(t.Context(), s.program(strings.TrimPrefix(mode, "stopped")), s.options(plugins.Times{})...)
	require.NoError(t, err)
	pid := s.pid(t)
	if mode == "stopped" {
		kill(t, pid, syscall.SIGSTOP)
	}
	leftovers, err := filepath.Glob(filepath.Join(s.dir, "plugin-dir*"))
	require.NoError(t, err)
	assert.Empty(t, leftovers, "the directory of the socket, which nobody could remove if we were killed now")
	require.NoError(t, sp.Close())
	assert.False(t, alive(pid))
	if mode == "mark" {
		assert.FileExists(t, filepath.Join(s.dir, "ended"))
		assert.Contains(t, s.logged(), "last words")
	}
}

// TestLastWords: what a plugin said is in the log when Close returns, however late
// its reader gets a turn.
func TestLastWords(t *testing.T) {
	s := newSpecimen(t)
	closed := make(chan struct{})
	late := writerFunc(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("last words")) {
			select {
			case <-closed: // too late
			case <-time.After(200 * time.Millisecond):
				return s.Write(b)
			}
		}
		return len(b), nil
	})
	sp, err := plugins.OpenSpeaker(t.Context(), s.program("mark"), plugins.WithLogger(slog.New(slog.NewTextHandler(late, nil))))
	require.NoError(t, err)
	require.NoError(t, sp.Close())
	close(closed)
	assert.Contains(t, s.logged(), "last words")
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestOutput has what a plugin prints in the log, and much of it harm nobody.
func TestOutput(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{})
	s.tell(t, command{Do: "print", What: "1|1|unix|/tmp/x|grpc|\nsecond line"})
	eventually(t, "the log has it twice", func() error {
		if n := strings.Count(s.logged(), `msg="second line" plugin=testplugin`); n != 2 {
			return fmt.Errorf("%d times in %s", n, s.logged())
		}
		return nil
	})
	require.NoError(t, sp.Put(t.Context(), bothRoutes()...))

	s = newSpecimen(t)
	sp = s.openSpeaker(t, "flood", plugins.Times{})
	pid := s.pid(t)
	for range 100 {
		require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
	}
	assert.Equal(t, pid, s.pid(t))
	assert.Contains(t, s.logged(), "flood")
}

func TestEnvironment(t *testing.T) {
	t.Setenv("VMFABRIC_NODE", "of another")
	s := newSpecimen(t)
	p := s.program("")
	p.Place = plugins.Place{Config: "/etc/vmfabric/cluster.yaml", Node: "node1"}
	sp, err := plugins.OpenSpeaker(t.Context(), p)
	require.NoError(t, err)
	defer sp.Close()
	assert.Equal(t, [2]string{p.Place.Config, p.Place.Node}, s.tell(t, command{Do: "env"}).Env)
}

// TestGroup has the signals of the agent's terminal stay with the agent.
func TestGroup(t *testing.T) {
	s := newSpecimen(t)
	s.openSpeaker(t, "", plugins.Times{})
	group, err := syscall.Getpgid(s.pid(t))
	require.NoError(t, err)
	assert.Equal(t, s.pid(t), group)
}

// TestHostIsKilled has no plugin outlive its agent, also one that hangs, and one
// behind a script.
func TestHostIsKilled(t *testing.T) {
	for _, mode := range []string{"", "stay", "stopped", "scripted"} {
		t.Run("mode "+mode, func(t *testing.T) {
			s := newSpecimen(t)
			path := binary
			if mode == "scripted" {
				path = filepath.Join(s.dir, "script")
				require.NoError(t, executable.Write(path, []byte("#!/bin/sh\n"+binary+"\nexit 0\n")))
			}
			host := exec.Command(binary, "host", path)
			host.Env = append(os.Environ(), "TESTPLUGIN_DIR="+s.dir, "TMPDIR="+s.dir, "TESTPLUGIN_MODE="+mode)
			host.Stderr = s
			out, err := host.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, host.Start())
			defer func() { _ = host.Process.Kill(); _ = host.Wait() }()
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "hosting\n", line)
			pid := s.pid(t)
			require.True(t, alive(pid))
			require.NotEqual(t, host.Process.Pid, pid)
			runtime.GC()
			if mode == "stopped" {
				kill(t, pid, syscall.SIGSTOP)
			}
			require.NoError(t, host.Process.Kill())
			awaitEnd(t, pid)
		})
	}
}

// TestThreadsEnd has the thread that started a plugin be of no consequence to it:
// the kernel sends the signal of a parent's death when a thread ends.
func TestThreadsEnd(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{})
	pid := s.pid(t)
	var threads sync.WaitGroup
	for range 50 {
		threads.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			time.Sleep(10 * time.Millisecond)
		})
	}
	threads.Wait()
	require.NoError(t, sp.Put(t.Context(), bothRoutes()...))
	assert.True(t, alive(pid))
	assert.Equal(t, pid, s.pid(t))
}

// TestMany puts more routes than fit in one message.
func TestMany(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "", plugins.Times{Call: patience})
	var routes []fabric.Route
	var gone []netip.Prefix
	for i := range 12_000 {
		a := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 14: byte(i >> 8), 15: byte(i)})
		routes = append(routes, fabric.Route{Prefix: netip.PrefixFrom(a, 128)})
		gone = append(gone, routes[i].Prefix)
	}
	require.NoError(t, sp.Put(t.Context(), routes...))
	got, err := sp.Actual(t.Context())
	require.NoError(t, err)
	assert.Len(t, got, len(routes))
	require.NoError(t, sp.Remove(t.Context(), gone[1:]...))
	got, err = sp.Actual(t.Context())
	require.NoError(t, err)
	assert.Equal(t, routes[:1], got)
}

// stopped waits until a process that was sent SIGSTOP has stopped.
func stopped(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, after, _ := strings.Cut(string(b), ") ")
		return err == nil && strings.HasPrefix(after, "T")
	}, patience, time.Millisecond)
}
