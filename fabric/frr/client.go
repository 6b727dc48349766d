package frr

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Client gives commands to the FRR daemons of this machine, by vtysh.
type Client struct {
	Vtysh     string // the program; looked up in PATH when empty
	Pathspace string // which of several sets of daemons (vtysh -N); none when empty
}

// Run runs commands, one after the other, and returns FRR's answers. If FRR refuses a
// command, it returns an error. It returns when ctx ends.
func (c Client) Run(ctx context.Context, commands ...string) (string, error) {
	var args []string
	if c.Pathspace != "" {
		args = append(args, "-N", c.Pathspace)
	}
	for _, command := range commands {
		args = append(args, "-c", command)
	}
	cmd := exec.CommandContext(ctx, cmp.Or(c.Vtysh, "vtysh"), args...)
	cmd.WaitDelay = 5 * time.Second // a busy node may need a moment to read what is in the pipes
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("vtysh does not answer: %w", context.Cause(ctx))
	} else if err != nil {
		err = reason(err, errOut.String()+" "+out.String())
	}
	return out.String(), err
}

// reason says for people why vtysh failed, by what it wrote.
func reason(err error, wrote string) error {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w; install frr, or name the program", err)
	case strings.Contains(wrote, "failed to connect to any daemons"):
		return errors.New("vtysh reaches no daemon of FRR; start frr, and run as root or in the group frrvty")
	case strings.Contains(wrote, "bgpd is not running"):
		return errors.New("FRR's bgpd does not run; set bgpd=yes in /etc/frr/daemons and restart frr")
	}
	const most = 400 // bytes, of the end, which has the cause
	text := oneline.Words(wrote)
	if len(text) > most {
		text = "..." + text[len(text)-most:]
	}
	return fmt.Errorf("vtysh: %w: %s", err, text)
}

// JSON runs a command that answers in JSON ("show bgp summary json") and reads
// the answer into v.
func (c Client) JSON(ctx context.Context, command string, v any) error {
	out, err := c.Run(ctx, command)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}
