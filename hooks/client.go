package hooks

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// ErrNoAgent says that no agent listens on the socket.
var ErrNoAgent = errors.New("no agent")

// redial is the pause between two attempts to reach an agent.
const redial = 100 * time.Millisecond

// Client sends requests to the agent of this node. The zero value uses
// [DefaultSocket] and does not wait for an agent.
type Client struct {
	Socket string
	// Wait is how long the client waits for an agent that restarts. If the agent
	// goes away during a request, the client sends the request again.
	Wait time.Duration
}

// Call sends a request to the agent on the socket, and does not wait for one.
func Call(ctx context.Context, socket string, req Request) (Reply, error) {
	return Client{Socket: socket}.Call(ctx, req)
}

// Call sends a request and returns the reply. The error is the agent's
// ([fabric.ErrRefused] if it refused; the reply comes with it), an [ErrNoAgent], or
// says that the agent did not answer before ctx ended. In the last case the agent
// may still do what was asked.
func (c Client) Call(ctx context.Context, req Request) (Reply, error) {
	req.V = Version
	line, err := encode(req)
	if err != nil {
		return Reply{}, err
	}
	if len(line) > maxRequest {
		return Reply{}, fmt.Errorf("a request of %d bytes; the agent reads at most %d, give the guest fewer addresses", len(line), maxRequest)
	}
	socket := cmp.Or(c.Socket, DefaultSocket)
	began := time.Now()
	for {
		reply, err := exchange(ctx, socket, line)
		again := errors.Is(err, syscall.EAGAIN) || // the agent listens, and its queue of connections is full
			(notThere(err) || lost(err)) && time.Since(began)+redial <= c.Wait
		if !again {
			return reply, explain(ctx, err, socket, began)
		}
		if !backoff.Sleep(ctx, redial) {
			return Reply{}, explain(ctx, err, socket, began)
		}
	}
}

// exchange makes one attempt. Its errors are raw.
func exchange(ctx context.Context, socket string, line []byte) (Reply, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	// An agent that refuses a line before its end may have said why.
	_, werr := conn.Write(line)
	line, err = readLine(bufio.NewReader(conn), maxReply)
	if err != nil {
		return Reply{}, cmp.Or(werr, err)
	}
	var reply Reply
	if err := json.Unmarshal(line, &reply); err != nil {
		return Reply{}, fmt.Errorf("the reply cannot be read: %s", oneline.OfJSON(err))
	}
	switch {
	case reply.V > Version:
		return reply, fmt.Errorf("the agent speaks version %d of the line, this program %d; upgrade the program", reply.V, Version)
	case !reply.OK:
		return reply, &replyError{reply.Error, reply.Refused, reply.Unsupported}
	}
	return reply, nil
}

func notThere(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// lost reports that a connection ended before the reply. The request can be sent
// again: every op may be repeated.
func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// explain words an error of exchange for people.
func explain(ctx context.Context, err error, socket string, began time.Time) error {
	var said *replyError
	var call *os.SyscallError
	var wait net.Error
	switch {
	case err == nil || errors.As(err, &said):
		return err
	case notThere(err) && errors.As(err, &call):
		return fmt.Errorf("%w answers on %s (%w); start it: systemctl start vmfabric", ErrNoAgent, socket, call)
	case lost(err):
		return fmt.Errorf("the agent on %s went away before it answered (%w); see its log: journalctl -u vmfabric", socket, err)
	case ctx.Err() != nil, errors.As(err, &wait) && wait.Timeout(): // either may come first
		waited := time.Since(began)
		if deadline, ok := ctx.Deadline(); ok {
			waited = deadline.Sub(began)
		}
		return fmt.Errorf("the agent on %s did not answer within %v (%w); see its log: journalctl -u vmfabric",
			socket, waited.Round(100*time.Millisecond), cmp.Or(context.Cause(ctx), context.DeadlineExceeded))
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the agent on %s listens to root alone (%w); run this as root", socket, err)
	}
	return fmt.Errorf("agent on %s: %w", socket, err)
}
