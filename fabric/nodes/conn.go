package nodes

import (
	"bufio"
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
)

const (
	maxAtOnce = 8                // questions to one node; the others wait
	maxIdle   = 2                // connections to one node that are kept
	keepFor   = 45 * time.Second // without a question; the other side keeps them longer
)

var (
	errNoFamily = errors.New("it has no address of a family that this node has")
	errNoWord   = errors.New("closed the connection without a word")
	past        = time.Unix(1, 0) // a deadline that ends what is under way
)

// peer is a node that was called.
type peer struct {
	slots chan struct{}
	idle  []*conn // the last one used is the last
}

func (n *Nodes) peer(name string) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[name]
	if p == nil {
		p = &peer{slots: make(chan struct{}, maxAtOnce)}
		n.peers[name] = p
	}
	return p
}

// take gives a connection that waits for a question, or nil.
func (n *Nodes) take(p *peer, to fabric.Node) *conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if c.remote == to.Source(c.remote) && time.Since(c.used) < keepFor {
			return c
		}
		c.Close()
	}
	return nil
}

// keep has a connection wait for the next question.
func (n *Nodes) keep(p *peer, c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || len(p.idle) >= maxIdle {
		c.Close()
		return
	}
	c.used = time.Now()
	p.idle = append(p.idle, c)
}

// drop closes the connections that wait.
func (n *Nodes) drop(p *peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// prune closes the connections of all peers that had no question for a while;
// all of them when the agent stops.
func (n *Nodes) prune(all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		kept := p.idle[:0]
		for _, c := range p.idle {
			if all || time.Since(c.used) >= keepFor {
				c.Close()
			} else {
				kept = append(kept, c)
			}
		}
		clear(p.idle[len(kept):])
		p.idle = kept
	}
}

// conn is a connection on which this node asks, one question at a time.
type conn struct {
	net.Conn
	remote netip.Addr
	lines  *bufio.Scanner
	hello  hello // the other side's
	asked  uint64
	used   time.Time
}

// dial calls a node on its IPv4 address, then, where that leads nowhere, on its
// IPv6 address.
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
	var worst error // the first, or better one that waiting does not settle
	for i, way := range ways {
		c, err := n.call(ctx, way[0], way[1], len(ways)-i)
		if err == nil {
			if err = n.agrees(c.hello, to); err == nil {
				return c, nil
			}
			c.Close()
		}
		if worst == nil || !disagrees(worst) && disagrees(err) {
			worst = err
		}
	}
	return nil, worst
}

// call opens a connection and reads its first line, within its share of the
// time: that of one in so many ways.
func (n *Nodes) call(ctx context.Context, from, to netip.Addr, ways int) (*conn, error) {
	end, _ := ctx.Deadline()
	end = time.Now().Add(time.Until(end) / time.Duration(ways))
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: sendsNear, Deadline: end}
	nc, err := d.DialContext(ctx, network(to), netip.AddrPortFrom(to, n.port).String())
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, remote: to, lines: lines(nc)}
	c.SetDeadline(end)
	defer context.AfterFunc(ctx, func() { c.SetDeadline(past) })()
	line, err := next(c.lines)
	if err == nil {
		if err = json.Unmarshal(line, &c.hello); err != nil {
			err = disagree("what listens there is no agent (%v); see what it is, or change agent_port in the cluster file of all nodes", err)
		}
	} else if lost(err) {
		err = errNoWord
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// network gives the words of package net for the family of a.
func network(a netip.Addr) string {
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

// agrees checks who it is that listens where a node should.
func (n *Nodes) agrees(h hello, to fabric.Node) error {
	switch {
	case h.V < Version:
		return disagree("it speaks version %d of the agents' line, this agent %d; upgrade it", h.V, Version)
	case h.Cluster != n.cluster.Name:
		return disagree("what answers there is of cluster %.40q, this node of %s; correct the address, or the name", h.Cluster, n.cluster.Name)
	case h.Node != to.Name:
		return disagree("what answers there is node %.40q; correct the addresses in the cluster file, or --node there", h.Node)
	case h.Keyed && n.key == nil:
		return disagree("it has passwords for the reflectors, this node none; " + samePasswords)
	case !h.Keyed && n.key != nil:
		return disagree("it has no passwords for the reflectors, this node has; " + samePasswords)
	}
	return nil
}

// ask asks and waits for the answer until ctx ends. After an error the
// connection is of no more use.
func (c *conn) ask(ctx context.Context, k key, body []byte) (fabric.Answer, error) {
	end, _ := ctx.Deadline()
	c.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	c.asked++
	mac := k.mac(c.hello.Nonce, question, c.asked, nil, body)
	line, err := encode(sealed{mac, body})
	if err != nil {
		return fabric.Answer{}, err
	}
	// Who refuses a line before its end may have said why.
	_, werr := c.Write(append(line, '\n'))
	line, err = next(c.lines)
	if !stop() {
		err = cmp.Or(err, ctx.Err())
	}
	if err != nil {
		return fabric.Answer{}, cmp.Or(werr, err)
	}
	return c.read(k, mac, line)
}

// read reads the answer to the question with a MAC.
func (c *conn) read(k key, mac, line []byte) (fabric.Answer, error) {
	s, err := open(line)
	if err != nil {
		return fabric.Answer{}, err
	}
	sealed := hmac.Equal(s.MAC, k.mac(c.hello.Nonce, response, c.asked, mac, s.Body))
	if !sealed && len(s.MAC) > 0 {
		return fabric.Answer{}, disagree(otherPasswords)
	}
	var r reply
	switch err := decode(s.Body, &r, c.hello.Node, "this node"); {
	case err != nil:
		return fabric.Answer{}, err
	case r.Error != "": // may come without a MAC, from who has another key
		return fabric.Answer{}, disagree("%s", r.Error)
	case !sealed:
		return fabric.Answer{}, disagree(otherPasswords)
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

// absent tells of an own address that this machine does not have.
func absent(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

func timeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
