package nodes

import (
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
	"github.com/vmfabric/vmfabric/internal/backoff"
)

const (
	retry = time.Second      // between two attempts to listen
	first = 5 * time.Second  // for the first question to arrive, and to write an answer
	idle  = 60 * time.Second // for the next question
)

// answerer is the function that Serve gets.
type answerer func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer

// Serve implements [fabric.Nodes]. It tries an address that the machine does not
// have yet, or that another program uses, again each second, and [Nodes.Diagnose]
// reports that. When ctx ends, Serve ends the contexts of the open questions, waits
// for their answers, and closes all connections.
func (n *Nodes) Serve(ctx context.Context, answer func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer) error {
	n.peers.start()
	if n.key == nil {
		n.log.Warn("no key_file in the cluster file, and no passwords: only the nodes that are named there are heard, and whoever has the address of one is believed; give the cluster a key_file")
	}
	var all, tried sync.WaitGroup
	for _, a := range []netip.Addr{n.self.Address, n.self.Address6} {
		if a.IsValid() {
			tried.Add(1)
			all.Go(func() { n.hear(ctx, a, answer, sync.OnceFunc(tried.Done)) })
		}
	}
	all.Go(func() {
		tried.Wait() // a greeted node greets back, so listen before
		n.watch(ctx)
	})
	tick := time.NewTicker(keepFor / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			n.peers.prune()
		case <-ctx.Done():
		}
	}
	all.Wait()
	n.peers.stop()
	return nil
}

// hear answers questions on one of the node's addresses until ctx ends. It calls
// tried once it listens, or cannot yet.
func (n *Nodes) hear(ctx context.Context, a netip.Addr, answer answerer, tried func()) {
	defer tried()
	at := netip.AddrPortFrom(a, n.port)
	topic := "listen " + at.String()
	defer n.troubles.settle(topic)
	for ctx.Err() == nil {
		config := net.ListenConfig{Control: hearsNear}
		config.SetMultipathTCP(false) // MPTCP sockets have no minimal TTL
		l, err := config.Listen(ctx, network(a), at.String())
		tried()
		if err == nil {
			n.troubles.settle(topic)
			n.log.Info("agents of other nodes are heard", "address", at)
			err = n.accept(ctx, l.(*net.TCPListener), answer)
		}
		if ctx.Err() != nil {
			return
		}
		n.troubles.note(topic, unheard(at, err), 0)
		backoff.Sleep(ctx, retry)
	}
}

// unheard says why the agents of other nodes cannot reach this one.
func unheard(at netip.AddrPort, err error) string {
	var call *net.OpError
	if errors.As(err, &call) {
		err = call.Err // it has the address, too
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

// accept serves the callers, and waits for the last of them.
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
			// Descriptors and memory get free again.
			n.tally.warn(time.Now(), "agent of another node not accepted yet; raise LimitNOFILE of the agent if this stays", "err", err)
			backoff.Sleep(ctx, retry/10)
			continue
		default:
			return err
		}
		source := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if !n.admit(source, c) {
			c.Close()
			continue
		}
		conns.Go(func() {
			d := &dialogue{Conn: c, lines: newReader(c), nonce: rand.Text(), source: source}
			n.converse(ctx, d, answer)
			c.Close()
			if n.visitors.leave(d.source, d.Conn) && d.name != "" && ctx.Err() == nil {
				n.peers.left(d.name)
			}
		})
	}
}

// dialogue is a connection on which this node answers.
type dialogue struct {
	net.Conn
	lines  *reader
	nonce  string
	count  uint64
	source netip.Addr
	name   string // the node that has shown that it calls
}

// converse answers the questions of one connection until it or ctx ends.
func (n *Nodes) converse(ctx context.Context, d *dialogue, answer answerer) {
	defer context.AfterFunc(ctx, func() { d.SetReadDeadline(past) })()
	if d.write(hello{Version, n.cluster.Name, n.self.Name, d.nonce, n.key != nil, n.keyFrom, maxFirst, laterKinds, time.Now()}) != nil {
		return
	}
	for wait := first; ; wait = idle {
		line, err := d.lines.next(ctx, wait)
		if err != nil && !errors.Is(err, errTooLong) {
			return
		}
		s, err := n.unseal(d, line, err)
		if err != nil {
			// A caller that is not known to be a node gets no MAC. What it sent is
			// no proof that a node has a fault: this node's own greeting finds that
			// out.
			n.refused.Add(1)
			n.doubt(n.directory.topic(d.source))
			d.answer(nil, nil, reply{Error: err.Error()})
			return
		}
		r := n.answer(ctx, d, s.Body, answer)
		if d.answer(n.key, s.MAC, r) != nil {
			return
		}
	}
}

// unseal checks that a line, or the part of it that was read, comes from a caller
// that has the key.
func (n *Nodes) unseal(d *dialogue, line []byte, err error) (sealed, error) {
	switch {
	case err != nil && d.lines.trusted:
		return sealed{}, disagree("a line of more than %d bytes; give the guest fewer addresses", maxLine)
	case err != nil:
		return sealed{}, disagree("a first line of more than %d bytes; upgrade the agent that sent it, which is to greet first", maxFirst)
	}
	s, err := open(line)
	d.count++
	if err == nil && !hmac.Equal(s.MAC, n.key.mac(d.nonce, question, d.count, nil, s.Body)) {
		err = n.otherKey()
	}
	return s, err
}

// answer answers one question or greeting.
func (n *Nodes) answer(ctx context.Context, d *dialogue, body []byte, answer answerer) reply {
	var req request
	caller := n.directory.topic(d.source)
	err := decode(body, &req, caller, n.self.Name)
	if err == nil && req.To != n.self.Name {
		err = disagree("%s asked for %.40q and reached %s; correct the addresses in the cluster file, or the name that an agent goes by", caller, req.To, n.self.Name)
	}
	if err == nil && req.Notice != nil {
		err = req.Notice.Validate()
	}
	var from fabric.Node
	if err == nil {
		from, err = n.identify(d.source, req.From)
	}
	if err == nil {
		err = n.prove(d)
	}
	if err != nil {
		if n.key == nil {
			// Only the address says that it is a node: every program there has it.
			n.refused.Add(1)
			n.doubt(caller)
		} else {
			n.troubles.note("from "+caller, fmt.Sprintf("node %s: %v", caller, err), memory)
		}
		return reply{Error: err.Error()}
	}
	d.name = from.Name
	n.troubles.settle("from " + caller)
	n.peers.heard(from.Name)
	if req.Notice == nil {
		return reply{Answer: &fabric.Answer{}}
	}
	a := answer(ctx, from, *req.Notice)
	return reply{Answer: &a}
}

// identify finds the node that calls, as [directory.identify] does. It has the node
// greeted at an address that only its own word supports.
func (n *Nodes) identify(source netip.Addr, s sender) (fabric.Node, error) {
	from, unconfirmed, err := n.directory.identify(source, s)
	if unconfirmed {
		n.peers.greetNow(from.Name)
	}
	return from, err
}

// prove counts a connection as a node's, and allows longer lines on it.
func (n *Nodes) prove(d *dialogue) error {
	if !d.lines.trusted && !n.visitors.prove(d.source, d.Conn) {
		return disagree("%s has %d connections open, or more; close some, or see what runs there", d.source, maxEach)
	}
	d.lines.trusted = true
	return nil
}

// answer writes the answer to the question with the given MAC.
func (d *dialogue) answer(k key, mac []byte, r reply) error {
	r.V, r.Error = Version, printable(r.Error)
	body, err := encode(r)
	if err != nil {
		return err
	}
	return d.write(sealed{k.mac(d.nonce, response, d.count, mac, body), body})
}

// write writes a line within the time first.
func (d *dialogue) write(v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	d.SetWriteDeadline(time.Now().Add(first))
	_, err = d.Write(append(b, '\n'))
	return err
}
