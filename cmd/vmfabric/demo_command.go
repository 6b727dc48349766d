package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/trusted"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// demoFlags has the options of the demonstration. The hidden ones are for the
// processes that it starts itself.
type demoFlags struct {
	keep, down bool
	record     string // the note of a standing demonstration
	standing   bool   // this process stays
}

func demoCommand(t *tool) *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole system in network namespaces of this machine",
		Long: `Demo builds two nodes, two reflectors, a core gateway, a client and three
guests as network namespaces, wires them by the same agent that runs on a real
node, and shows one guest from its prepare to the first ping, which configures itself by
DHCP and router advertisements, a move, and the death of a reflector. It needs a Linux kernel and nothing else, and root or user
namespaces; it leaves nothing behind.`,
		Example: `  vmfabric demo
  vmfabric demo --keep     and leave it standing, to look around
  vmfabric demo --down     and remove it`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.json {
				return usageError{errors.New("demo: it prints for people only; leave --json out")}
			}
			if f.record == "" {
				f.record = filepath.Join(os.TempDir(), fmt.Sprintf("vmfabric-demo-%d.json", os.Getuid()))
			}
			switch {
			case f.down:
				return demoDown(cmd.Context(), cmd.OutOrStdout(), f.record)
			case os.Geteuid() != 0:
				return demoUnprivileged(cmd.Context(), f)
			case f.keep && !f.standing:
				return demoKeep(cmd, f)
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.keep, "keep", false, "leave the demo standing")
	fl.BoolVar(&f.down, "down", false, "remove a demo that was left standing")
	fl.StringVar(&f.record, "record", "", "where a standing demonstration is noted")
	fl.BoolVar(&f.standing, "standing", false, "be the process that stays")
	for _, hidden := range []string{"record", "standing"} {
		_ = fl.MarkHidden(hidden)
	}
	cmd.AddCommand(demoCoreCommand(), demoGuestCommand())
	return cmd
}

// demoUnprivileged runs the demonstration as root of a user namespace.
func demoUnprivileged(ctx context.Context, f demoFlags) error {
	args := []string{"demo", "--record", f.record}
	if f.keep {
		args = append(args, "--keep")
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = core.UserNamespace()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return errDegraded // it has printed why
	case err != nil:
		return fmt.Errorf("demo: user namespaces are not allowed here (%w); run it as root, or allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)", err)
	}
	return nil
}

func runDemo(ctx context.Context, out io.Writer, f demoFlags) (err error) {
	lab, err := core.New(ctx, core.Options{Name: "demo"})
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	// Children start in other namespaces, where /proc/self/exe is theirs.
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d := &demo{out: out, lab: lab, self: self}
	err = d.play(ctx)
	if err == nil && f.standing {
		err = d.restore(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("demo: interrupted; everything is removed")
		}
		var b bytes.Buffer
		lab.Dump(&b)
		return fmt.Errorf("demo: %w\n%s", err, b.String())
	}
	if !f.standing {
		return nil
	}
	if err := recordStanding(f.record); err != nil {
		return err
	}
	defer os.Remove(f.record)
	d.lookAround()
	if err := letGo(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// lookAround prints how to look into a standing demonstration.
func (d *demo) lookAround() {
	enter := "ip netns exec"
	at := func(name string) string { return d.lab.Host(name).Namespace() }
	if !strings.HasPrefix(d.top.Core.NamespacePath(), "/run/netns/") {
		enter = fmt.Sprintf("nsenter -t %d -U -m --preserve-credentials nsenter", os.Getpid())
		at = func(name string) string { return "--net=" + d.lab.Host(name).NamespacePath() }
	}
	d.say("\nIt is left standing. To look around:")
	d.say("  %s --socket %s list", d.self, d.socket("node1"))
	d.say("  %s --socket %s status", d.self, d.socket("node2"))
	d.say("  %s %s ip route                    the core gateway's routes", enter, at("core1"))
	d.say("  %s %s ping 203.0.113.10           as the client", enter, at("client"))
	d.say("  %s %s ip -d addr show web_net0    a port", enter, at("node1"))
	d.say("  %s                 the logs", d.lab.Dir())
	d.say("To remove it:\n  %s demo --down", d.self)
}

// standing is the note about a demonstration that was left running.
type standing struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // when the process started, so that another one with its number does not count as it
}

func recordStanding(path string) error {
	b, err := json.Marshal(standing{os.Getpid(), startTime(os.Getpid())})
	if err != nil {
		return err
	}
	// Everybody can write to its folder: a file or link of that name is somebody
	// else's.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// readStanding finds the process of a standing demonstration, 0 if there is none.
// The caller ends that process, so readStanding refuses a note that somebody else
// could have written.
func readStanding(path string) (int, error) {
	err := trusted.Check(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if bad, ok := errors.AsType[*trusted.Error](err); ok {
		return 0, fmt.Errorf("%s: %s; remove it, or set TMPDIR to a folder of your own", path, bad.Fault())
	}
	if err != nil {
		return 0, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is no file of a demonstration; remove it, or set TMPDIR to a folder of your own", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var s standing
	if err := json.Unmarshal(b, &s); err != nil || s.PID <= 1 || s.Start == "" || s.Start != startTime(s.PID) {
		return 0, os.Remove(path) // that one has ended
	}
	return s.PID, nil
}

// startTime returns field 22 of /proc/PID/stat (proc_pid_stat(5)), "" if there is
// no such process.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := bytes.Cut(b, []byte(") "))
	fields := strings.Fields(string(after))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

func demoDown(ctx context.Context, out io.Writer, record string) error {
	pid, err := readStanding(record)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if pid == 0 {
		fmt.Fprintln(out, "no demonstration is standing")
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("demo: stop process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	start := startTime(pid)
	err = core.Until(ctx, func() error {
		if start != "" && startTime(pid) == start {
			return fmt.Errorf("process %d is still removing it", pid)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintln(out, "removed")
	return nil
}

// demoKeep runs the demonstration in a process that stays when this one ends.
func demoKeep(cmd *cobra.Command, f demoFlags) error {
	if pid, err := readStanding(f.record); err != nil || pid != 0 {
		return errors.Join(err, errors.New("demo: one is standing already; remove it first: vmfabric demo --down"))
	}
	done, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer done.Close()
	child := exec.Command("/proc/self/exe", "demo", "--keep", "--standing", "--record", f.record)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr // the files themselves: the process stays when this one has ended
	child.ExtraFiles = []*os.File{theirs}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	theirs.Close()
	stop := context.AfterFunc(cmd.Context(), func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	// The child writes one byte when the demonstration is up. If it fails, the pipe
	// ends.
	if n, _ := done.Read(make([]byte, 1)); n == 1 {
		return child.Process.Release()
	}
	if child.Wait() != nil {
		return errDegraded // it has printed why
	}
	return nil
}

// letGo tells the parent process that everything is printed, and gives its terminal
// back.
func letGo() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	pipe := os.NewFile(3, "done")
	_, err = pipe.Write([]byte{1})
	return errors.Join(err, pipe.Close())
}
