package machine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// guestAgent is the guest agent of a machine, by the socket that leads to its serial port
// (docs/interop/qemu-ga-ref of QEMU). Calls take turns.
type guestAgent struct {
	path string

	mu   sync.Mutex
	conn net.Conn
	read *bufio.Reader
}

// answersIn bounds how long the agent may take to answer a call.
const answersIn = 20 * time.Second

// execution is what guest-exec runs. It takes no null for what is not there.
type execution struct {
	Path   string   `json:"path"`
	Args   []string `json:"arg,omitempty"`
	Env    []string `json:"env,omitempty"`
	Input  []byte   `json:"input-data,omitempty"`
	Output bool     `json:"capture-output"`
}

// outcome is how a program ended (guest-exec-status).
type outcome struct {
	Exited   bool   `json:"exited"`
	ExitCode int    `json:"exitcode"`
	Signal   int    `json:"signal"`
	Out      []byte `json:"out-data"`
	Err      []byte `json:"err-data"`
}

// exec runs a program, and waits until it has ended.
func (g *guestAgent) exec(ctx context.Context, path string, args, env []string, input []byte) (o outcome, err error) {
	var started struct {
		Pid int `json:"pid"`
	}
	err = g.call(ctx, "guest-exec", execution{path, args, env, input, true}, &started)
	for err == nil && !o.Exited {
		if o, err = g.status(ctx, started.Pid); err == nil && !o.Exited {
			select {
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return o, err
}

func (g *guestAgent) status(ctx context.Context, pid int) (o outcome, err error) {
	return o, g.call(ctx, "guest-exec-status", map[string]any{"pid": pid}, &o)
}

// call makes one call. An agent that was not there, or was started anew, is first brought
// to where calls begin.
func (g *guestAgent) call(ctx context.Context, command string, arguments, answer any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.connect(ctx); err != nil {
		return fmt.Errorf("guest agent: %w", err)
	}
	reply, err := g.exchange(ctx, command, arguments)
	if err != nil {
		g.conn.Close()
		g.conn = nil
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	if reply.Error != nil {
		return fmt.Errorf("guest agent: %s: %s", command, reply.Error.Desc)
	}
	return json.Unmarshal(reply.Return, answer)
}

// connect opens the socket, and has the agent say a number, so that nothing of an earlier
// call is taken for an answer.
func (g *guestAgent) connect(ctx context.Context) error {
	if g.conn != nil {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", g.path)
	if err != nil {
		return err
	}
	g.conn, g.read = conn, bufio.NewReader(conn)
	if err := g.sync(ctx); err != nil {
		conn.Close()
		g.conn = nil
		return err
	}
	return nil
}

// sync sends a number, and reads until it comes back. The byte 0xff ends what the agent
// has half read, and begins its answer.
func (g *guestAgent) sync(ctx context.Context) error {
	number := rand.Int32()
	if _, err := g.conn.Write([]byte{0xff}); err != nil {
		return err
	}
	if err := g.send(ctx, "guest-sync-delimited", map[string]any{"id": number}); err != nil {
		return err
	}
	for {
		if _, err := g.read.ReadBytes(0xff); err != nil {
			return err
		}
		line, err := g.read.ReadBytes('\n')
		if err != nil {
			return err
		}
		var said struct{ Return int32 }
		if json.Unmarshal(line, &said) == nil && said.Return == number {
			return nil
		}
	}
}

type agentReply struct {
	Return json.RawMessage
	Error  *struct{ Desc string }
}

func (g *guestAgent) exchange(ctx context.Context, command string, arguments any) (reply agentReply, err error) {
	if err := g.send(ctx, command, arguments); err != nil {
		return reply, err
	}
	line, err := g.read.ReadBytes('\n')
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(bytes.TrimLeft(line, "\xff"), &reply); err != nil {
		return reply, err
	}
	if reply.Return == nil && reply.Error == nil {
		err = errors.New("no answer in what it says")
	}
	return reply, err
}

// send sends a call. What is read after it comes in time, or not at all.
func (g *guestAgent) send(ctx context.Context, command string, arguments any) error {
	until := time.Now().Add(answersIn)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if err := g.conn.SetDeadline(until); err != nil {
		return err
	}
	line, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	_, err = g.conn.Write(append(line, '\n'))
	return err
}
