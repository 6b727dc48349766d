package bird

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is BIRD's own default for the path of its control socket.
const DefaultSocket = "/run/bird/bird.ctl"

// replyBound is how long BIRD may take for one command.
const replyBound = 10 * time.Second

// Client sends commands to a BIRD that runs on this machine.
type Client struct {
	Socket string // the path of its control socket; DefaultSocket when empty
}

// Query sends one command and returns the lines of the answer, as birdc shows them.
// If BIRD refuses the command, it returns an error. It returns when ctx ends, and
// after ten seconds at the latest.
func (c Client) Query(ctx context.Context, command string) (lines []string, err error) {
	err = c.converse(ctx, command, func(answer []string, _ *bufio.Reader) error {
		lines = answer
		return nil
	})
	return lines, err
}

// converse sends one command, waits up to ten seconds for the answer, and passes the
// answer and the rest of the input to then. Reading ends with ctx.
func (c Client) converse(ctx context.Context, command string, then func(answer []string, in *bufio.Reader) error) error {
	conn, err := (&net.Dialer{Timeout: replyBound}).DialContext(ctx, "unix", c.socket())
	if err != nil {
		return c.reason(err)
	}
	defer conn.Close()
	interrupt := func() { _ = conn.SetDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, interrupt)()
	slow := time.AfterFunc(replyBound, interrupt)
	defer slow.Stop()
	in := bufio.NewReader(conn)
	_, err = readReply(in) // the greeting
	if err == nil {
		_, err = fmt.Fprintln(conn, command)
	}
	var answer []string
	if err == nil {
		answer, err = readReply(in)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("BIRD at %s does not answer: %w", c.socket(), cmp.Or(context.Cause(ctx), context.DeadlineExceeded))
	}
	if err != nil {
		return err
	}
	slow.Stop()
	return then(answer, in)
}

func (c Client) socket() string { return cmp.Or(c.Socket, DefaultSocket) }

// reason says for people why the connection to the socket failed.
func (c Client) reason(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("BIRD has no control socket at %s: %w; start bird, or name the socket that it has (bird -s)", c.socket(), os.ErrNotExist)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("BIRD does not run, its control socket %s is from an earlier one: %w; start bird", c.socket(), unix.ECONNREFUSED)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("control socket %s: %w; run as root, or in BIRD's group", c.socket(), os.ErrPermission)
	}
	return err
}

// readReply reads an answer. A line begins with a code of four digits and '-', or ' '
// if it is the last line; or with ' ' alone if it has the code of the line before. The
// codes 8xxx and 9xxx are errors. Lines that begin with '+' belong to no answer.
func readReply(in *bufio.Reader) ([]string, error) {
	var lines []string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return lines, err
		}
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "+"):
		case strings.HasPrefix(line, " "):
			lines = append(lines, line[1:])
		case len(line) < 5:
			return lines, fmt.Errorf("answer %q is not of BIRD's control protocol", line)
		case line[0] == '8' || line[0] == '9':
			return lines, errors.New(line[5:])
		default:
			if text := line[5:]; text != "" {
				lines = append(lines, text)
			}
			if line[4] == ' ' {
				return lines, nil
			}
		}
	}
}
