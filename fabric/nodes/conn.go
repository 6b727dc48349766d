package nodes

import (
	"cmp"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

const (
	maxAtOnce = 8 // questions to one node at a time; the others wait
	maxIdle   = 2 // idle connections to one node that are kept
	// refusedFor is how long a node that never answered, and on which no agent
	// listens, counts as not set up yet, unless it calls: an agent that starts does
	// so at once. So the start of many guests does not call such a node for each.
	refusedFor = time.Second
	keepFor    = 45 * time.Second // without a question; the other side keeps it longer
)

// How long this node waits for another, unless the context of the question ends
// before. A kernel accepts a connection at once, even on a busy machine; an agent
// may have to wait for a processor. The notice about a guest with thousands of
// prefixes gets more time, by its size.
const (
	reach    = 2 * time.Second // to connect; in this time the kernel sends the SYN twice
	patience = 5 * time.Second // for an answer, once the question was sent
	slowest  = 1 << 17         // bytes a second that the slowest node handles
	part     = 64 << 10        // bytes that are sent at once; patience bounds each part
)

var (
	errNoFamily = errors.New("it has no address of a family that this node has")
	errNoWord   = errors.New("closed the connection without a word")
	past        = time.Unix(1, 0) // a deadline that ends reads and writes at once
)

// conn is a connection on which this node asks, one question at a time.
type conn struct {
	net.Conn
	remote netip.Addr
	lines  *reader
	hello  hello // the other side's
	// greeting has what the hello says of the other side's clock.
	greeting Greeting
	asked    uint64
	proven   bool // the other side has received a line with the right MAC
	used     time.Time
}

// dial connects to a node on its IPv4 address and, if that fails, on its IPv6
// address.
func (n *Nodes) dial(ctx context.Context, to fabric.Node) (*conn, error) {
	var ways [][2]netip.Addr
	for _, way := range [][2]netip.Addr{{n.self.Address, to.Address}, {n.self.Address6, to.Address6}} {
		if way[0].IsValid() && way[1].IsValid() {
			ways = append(ways, way)
		}
	}
	if len(ways) == 0 {
		return nil, errNoFamily
	}
	var worst error // the first one, or else the first disagreement: waiting does not settle that
	none := true    // no agent listens
	began := time.Now()
	for _, way := range ways {
		c, err := n.call(ctx, way[0], way[1])
		if err == nil {
			if err = n.agrees(c.hello, to); err == nil {
				return c, nil
			}
			c.Close()
		}
		none = none && refused(err)
		if worst == nil || !disagrees(worst) && disagrees(err) {
			worst = err
		}
	}
	if none {
		n.peers.refuseConnections(to.Name, worst, began)
	}
	return nil, worst
}

// call opens a connection and reads the hello.
func (n *Nodes) call(ctx context.Context, from, to netip.Addr) (*conn, error) {
	began := time.Now()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: sendsNear, Timeout: reach}
	nc, err := d.DialContext(ctx, network(to), netip.AddrPortFrom(to, n.port).String())
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, remote: to, lines: newReader(nc)}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	line, err := c.lines.next(ctx, patience)
	if !stop() {
		err = cmp.Or(err, ctx.Err())
	}
	switch {
	case err == nil:
		if err = json.Unmarshal(line, &c.hello); err != nil {
			err = disagree("what listens there is no agent (%s); see what it is, or change agent_port in the cluster file of all nodes", oneline.OfJSON(err))
		}
	case errors.Is(err, errTooLong):
		err = disagree("what listens there is no agent (%v); see what it is, or change agent_port in the cluster file of all nodes", err)
	case lost(err):
		err = errNoWord
	}
	c.greeting = greetingOf(c.hello, began, time.Now())
	if err != nil {
		c.Close()
		return nil, err
	}
	c.lines.trusted = true
	return c, nil
}

// network returns the name that package net has for TCP over the family of a.
func network(a netip.Addr) string {
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

// agrees checks that the right node listens at an address.
func (n *Nodes) agrees(h hello, to fabric.Node) error {
	switch {
	case h.V < Version:
		return disagree("it speaks version %d of the agents' line, this agent %d; upgrade it", h.V, Version)
	case h.Cluster != n.cluster.Name:
		return disagree("what answers there is of cluster %.40q, this node of %s; correct the address, or the name", h.Cluster, n.cluster.Name)
	case h.Node != to.Name:
		return disagree("what answers there is node %.40q; correct the addresses in the cluster file, or the name that it goes by", h.Node)
	}
	return n.sameKind(h)
}

// ask sends a question and waits for the answer, or until ctx ends. After an error
// the connection is of no more use.
func (c *conn) ask(ctx context.Context, n *Nodes, body []byte) (fabric.Answer, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	answer, err := c.prove(ctx, n, len(body))
	if err == nil {
		answer, err = c.put(ctx, n, body)
	}
	if !stop() {
		err = cmp.Or(err, ctx.Err())
	}
	return answer, err
}

// prove greets first if the question is so long that the other side reads it only
// after a line with the right MAC.
func (c *conn) prove(ctx context.Context, n *Nodes, size int) (fabric.Answer, error) {
	first := c.hello.First
	if first == 0 || c.proven || size+overhead <= first {
		return fabric.Answer{}, nil
	}
	greeting, err := n.request(c.hello.Node, nil)
	if err != nil {
		return fabric.Answer{}, err
	}
	return c.put(ctx, n, greeting)
}

// overhead is how much longer than its body a line can be.
const overhead = 128

// put sends one question and reads its answer.
func (c *conn) put(ctx context.Context, n *Nodes, body []byte) (fabric.Answer, error) {
	c.asked++
	mac := n.key.mac(c.hello.Nonce, question, c.asked, nil, body)
	line, err := encode(sealed{mac, body})
	if err != nil {
		return fabric.Answer{}, err
	}
	// A node that refuses a line before its end may have said why: read that before
	// a write error counts.
	werr := c.send(ctx, append(line, '\n'))
	line, err = c.lines.next(ctx, patience+time.Duration(len(body))*time.Second/slowest)
	if err != nil {
		return fabric.Answer{}, cmp.Or(ctx.Err(), werr, err)
	}
	answer, err := c.read(n, mac, line)
	c.proven = err == nil
	return answer, err
}

// send writes a line in parts. It gives up when a part takes longer than patience.
func (c *conn) send(ctx context.Context, line []byte) error {
	for len(line) > 0 {
		until(ctx, c.SetWriteDeadline, patience)
		wrote, err := c.Write(line[:min(part, len(line))])
		if err != nil {
			return err
		}
		line = line[wrote:]
	}
	return nil
}

// read reads the answer to the question with the given MAC.
func (c *conn) read(n *Nodes, mac, line []byte) (fabric.Answer, error) {
	s, err := open(line)
	if err != nil {
		return fabric.Answer{}, err
	}
	sealed := hmac.Equal(s.MAC, n.key.mac(c.hello.Nonce, response, c.asked, mac, s.Body))
	if !sealed && len(s.MAC) > 0 {
		return fabric.Answer{}, n.otherKey()
	}
	var r reply
	switch err := decode(s.Body, &r, c.hello.Node, "this node"); {
	case err != nil:
		return fabric.Answer{}, err
	case r.Error != "": // a node with another key cannot add the right MAC
		return fabric.Answer{}, disagree("%s", r.Error)
	case !sealed:
		return fabric.Answer{}, n.otherKey()
	case r.Answer == nil:
		return fabric.Answer{}, disagree("an answer that says nothing; upgrade the older of the two agents")
	}
	return *r.Answer, nil
}

func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// absent reports that this machine does not have the source address.
func absent(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

// unreachable reports that no machine was found at the address, or that a packet filter
// says so.
func unreachable(err error) bool {
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// errnoOf is the kernel's own word, without the addresses that the caller names better.
func errnoOf(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func timeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
