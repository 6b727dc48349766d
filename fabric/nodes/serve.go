package nodes

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	retry    = time.Second      // between two attempts to listen
	first    = 5 * time.Second  // for the first question to arrive, and for an answer to be taken
	idle     = 60 * time.Second // for the next question
	maxConns = 1024
	maxEach  = 32 // connections from one address: those of a node and of its agent before the restart
)

// answerer is the function that Serve gets.
type answerer func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer

// Serve implements [fabric.Nodes]. An address that the machine does not have
// yet, or where something else listens, is tried again each second, and told by
// [Nodes.Diagnose] meanwhile. When ctx ends, so do the contexts of the questions
// under way, which are waited for, and all connections.
func (n *Nodes) Serve(ctx context.Context, answer func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer) error {
	n.mu.Lock()
	n.closed = false
	n.mu.Unlock()
	var all sync.WaitGroup
	for _, a := range []netip.Addr{n.self.Address, n.self.Address6} {
		if a.IsValid() {
			all.Go(func() { n.hear(ctx, a, answer) })
		}
	}
	tick := time.NewTicker(keepFor / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			n.prune(false)
		case <-ctx.Done():
		}
	}
	all.Wait()
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.prune(true)
	return nil
}

// hear answers on one of the node's addresses until ctx ends.
func (n *Nodes) hear(ctx context.Context, a netip.Addr, answer answerer) {
	at := netip.AddrPortFrom(a, n.port)
	topic := "listen " + at.String()
	defer n.settle(topic)
	for ctx.Err() == nil {
		config := net.ListenConfig{Control: hearsNear}
		config.SetMultipathTCP(false) // its sockets know no minimal TTL
		l, err := config.Listen(ctx, network(a), at.String())
		if err == nil {
			n.settle(topic)
			n.log.Info("agents of other nodes are heard", "address", at)
			err = n.accept(ctx, l.(*net.TCPListener), answer)
		}
		if ctx.Err() != nil {
			return
		}
		n.note(topic, unheard(at, err), 0)
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
	}
}

// unheard says why the agents of other nodes do not reach this one.
func unheard(at netip.AddrPort, err error) string {
	var call *net.OpError
	if errors.As(err, &call) {
		err = call.Err // it names the address once more
	}
	wayOut := "see the log of the kernel"
	switch {
	case absent(err):
		wayOut = "give this machine the address, or correct it in the cluster file"
	case errors.Is(err, syscall.EADDRINUSE):
		wayOut = fmt.Sprintf("end what listens there (ss -ltnp sport = :%d), or change agent_port in the cluster file of all nodes", at.Port())
	}
	return fmt.Sprintf("agents of other nodes do not reach this one on %s: %v; %s", at, err, wayOut)
}

// accept answers those who call, and waits for the last of them.
func (n *Nodes) accept(ctx context.Context, l *net.TCPListener, answer answerer) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
			// A full table empties again.
			n.log.Warn("agent of another node not accepted yet; raise LimitNOFILE of the agent if this stays", "err", err)
			select {
			case <-time.After(retry / 10):
			case <-ctx.Done():
			}
			continue
		default:
			return err
		}
		source := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if !n.admit(source) {
			c.Close()
			continue
		}
		conns.Go(func() {
			defer n.leave(source)
			defer c.Close()
			n.converse(ctx, c, source, answer)
		})
	}
}

// admit counts a connection, or says that it is not to be.
func (n *Nodes) admit(source netip.Addr) bool {
	if !n.mayCall(source) {
		n.log.Debug("call of a stranger refused", "address", source)
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	total := 0
	for _, count := range n.conns {
		total += count
	}
	if total >= maxConns || n.conns[source] >= maxEach {
		n.log.Warn("call refused: too many connections", "address", source)
		return false
	}
	n.conns[source]++
	return true
}

func (n *Nodes) leave(source netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns[source]--; n.conns[source] == 0 {
		delete(n.conns, source)
	}
}

// dialogue is a connection on which this node answers.
type dialogue struct {
	net.Conn
	lines *bufio.Scanner
	nonce string
	count uint64
}

// converse answers the questions of one connection until it ends, or ctx does.
func (n *Nodes) converse(ctx context.Context, c net.Conn, source netip.Addr, answer answerer) {
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(past) })()
	d := &dialogue{Conn: c, lines: lines(c), nonce: rand.Text()}
	if d.write(hello{Version, n.cluster.Name, n.self.Name, d.nonce, n.key != nil}) != nil {
		return
	}
	for wait := first; ; wait = idle {
		c.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil { // the deadline just set may have replaced the one that ends the read
			return
		}
		line, err := next(d.lines)
		switch {
		case errors.Is(err, bufio.ErrTooLong):
			err = disagree("a line of more than %d bytes; give the guest fewer addresses", maxLine)
		case err != nil:
			return
		}
		var s sealed
		if err == nil {
			s, err = open(line)
		}
		d.count++
		if err == nil && !hmac.Equal(s.MAC, n.key.mac(d.nonce, question, d.count, nil, s.Body)) {
			err = disagree(otherPasswords)
		}
		if err != nil {
			// Who cannot be known to be one of us gets no MAC.
			n.note("from "+n.topic(source), fmt.Sprintf("node %s: %v", n.topic(source), err), memory)
			d.answer(nil, nil, reply{Error: err.Error()})
			return
		}
		if d.answer(n.key, s.MAC, n.answer(ctx, source, s.Body, answer)) != nil {
			return
		}
	}
}

// answer answers one question.
func (n *Nodes) answer(ctx context.Context, source netip.Addr, body []byte, answer answerer) reply {
	var req request
	caller := n.topic(source)
	err := decode(body, &req, caller, n.self.Name)
	if err == nil && req.To != n.self.Name {
		err = disagree("%s asked for %.40q and reached %s; correct the addresses in the cluster file, or --node of an agent", caller, req.To, n.self.Name)
	}
	if err == nil {
		err = req.Notice.Validate()
	}
	var from fabric.Node
	if err == nil {
		from, err = n.identify(source, req.From)
	}
	if err != nil {
		n.note("from "+caller, fmt.Sprintf("node %s: %v", caller, err), memory)
		return reply{Error: err.Error()}
	}
	n.settle("from " + caller)
	a := answer(ctx, from, req.Notice)
	return reply{Answer: &a}
}

// answer writes the answer to the question with a MAC.
func (d *dialogue) answer(k key, mac []byte, r reply) error {
	r.V, r.Error = Version, oneLine(r.Error)
	body, err := encode(r)
	if err != nil {
		return err
	}
	return d.write(sealed{k.mac(d.nonce, response, d.count, mac, body), body})
}

// write writes a line, which is to be taken before long.
func (d *dialogue) write(v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	d.SetWriteDeadline(time.Now().Add(first))
	_, err = d.Write(append(b, '\n'))
	return err
}
