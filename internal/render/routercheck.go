package render

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// CheckRouter makes the daemon of a format parse a text of [Router] on this
// machine, without running it: BIRD by "bird -p", FRR by "vtysh -C". The error is
// the daemon's message, or that the daemon is not installed. Junos checks on the
// router itself. During the check the text is in a file that only this user can
// read.
func CheckRouter(ctx context.Context, f Format, text string) error {
	var program string
	var args []string
	switch f {
	case BIRD:
		program, args = "bird", []string{"-p", "-c"}
	case FRR:
		program, args = "vtysh", []string{"-C", "-f"}
	default:
		return fmt.Errorf("%s is checked on the router; load it there and say: commit check", f)
	}
	path, err := daemons.Find(ctx, program)
	if err != nil {
		return fmt.Errorf("%s is not on this machine, so nothing was checked; install %s, or check on the machine that this is for", program, f)
	}
	dir, err := os.MkdirTemp("", "vmfabric-render-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, string(f)+".conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append(args, file)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		said := daemonWords(out.String(), file)
		if said == "" {
			return fmt.Errorf("%s: %w", program, err)
		}
		return errors.New(said)
	}
	return nil
}

// daemonWords removes from a daemon's output what is not about the text: the file's
// name, vtysh's complaint about its own configuration, which only root can read, and what
// it says of the whole file behind the line that it does not take (FRR 10).
func daemonWords(out, file string) string {
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(strings.ReplaceAll(line, file+":", "line "))
		if line != "" && !strings.Contains(line, "vtysh.conf") && !strings.HasPrefix(line, "Configuration file[") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}
