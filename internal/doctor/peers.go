package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// lookAtAgent passes on what the agent's status says.
func lookAtAgent(_ context.Context, e *examination) (found []Finding) {
	switch {
	case e.status != nil:
		for _, p := range e.status.Problems {
			found = append(found, sentence(Wrong, p))
		}
		for _, n := range e.status.Notes {
			found = append(found, sentence(Note, n))
		}
		return append(good("the agent answers on %s", e.Socket), found...)
	case !errors.Is(e.silent, hooks.ErrNoAgent):
		return unknown("the agent's status", e.silent)
	}
	if ports, err := e.survey.Ports(); err == nil && len(ports) > 0 {
		f := sentence(Wrong, e.silent.Error())
		f.What += ", and " + plural.Of(len(ports), "port of a guest is here", "ports of guests are here")
		f.Why = "guests go on, none can start or move, and nothing is repaired"
		return []Finding{f}
	}
	return []Finding{sentence(Note, e.silent.Error())}
}

// lookAtReflectors opens a connection to each reflector; an agent has its sessions.
func lookAtReflectors(ctx context.Context, e *examination) (found []Finding) {
	switch {
	case e.cluster == nil || e.noNode != nil:
		return blind("whether the reflectors answer: the node is not known")
	case e.status != nil:
		for _, text := range e.cluster.SessionProblems(e.node.Name, e.status.Sessions) {
			found = append(found, sentence(Wrong, text))
		}
		if len(found) == 0 {
			return good("%s established", plural.Of(len(e.status.Sessions), "BGP session is", "BGP sessions are"))
		}
		return found
	}
	results := make([]error, len(e.cluster.Reflectors))
	slots := make(chan struct{}, atOnce)
	each(len(results), func(i int) {
		slots <- struct{}{}
		defer func() { <-slots }()
		results[i] = e.reach(ctx, e.cluster.Reflectors[i])
	})
	for i, err := range results {
		r := e.cluster.Reflectors[i]
		switch {
		case errors.Is(err, errNoSource):
			found = append(found, unknown(fmt.Sprintf("reflector %s (%s)", r.Name, r.Address), err)...)
		case err != nil:
			s := fabric.Session{Peer: r.Name, Address: r.Address.String(), Failure: fabric.NewSessionFailure(err.Error(), time.Now())}
			why, wayOut, _ := strings.Cut(s.DownReason(), "; ")
			found = append(found, wrong(fmt.Sprintf("no session with %s (%s) can be opened: %s", r.Name, r.Address, why), wayOut))
		}
	}
	if len(found) == 0 {
		return good("all %d reflectors take connections on their BGP port", len(results))
	}
	return found
}

const (
	atOnce  = 16              // connections to other machines
	dialFor = 2 * time.Second // the SYN is sent twice in this time
)

var errNoSource = errors.New("this machine does not have the node's address of that family")

// reach opens a connection to a reflector as the node's speaker does, and closes it.
func (e *examination) reach(ctx context.Context, r fabric.RR) error {
	from, ok := e.from(r.Address)
	if !ok {
		return errNoSource
	}
	d := net.Dialer{Timeout: dialFor, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = sign(int(fd), r) }), err)
	}}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(r.Address, r.Port).String())
	if err != nil {
		return err
	}
	return c.Close()
}

// sign sets the password and the TTL of a session on a socket.
func sign(fd int, r fabric.RR) error {
	if r.GTSM {
		level, option := unix.IPPROTO_IP, unix.IP_TTL
		if r.Address.Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
		}
		if err := unix.SetsockoptInt(fd, level, option, 255); err != nil {
			return os.NewSyscallError("set TTL", err)
		}
	}
	if r.Password == "" {
		return nil
	}
	sig := unix.TCPMD5Sig{Keylen: uint16(len(r.Password))}
	copy(sig.Key[:], r.Password)
	if r.Address.Is4() {
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], r.Address.AsSlice()) // sockaddr_in: port, address
	} else {
		sig.Addr.Family = unix.AF_INET6
		copy(sig.Addr.Data[6:], r.Address.AsSlice()) // sockaddr_in6: port, flow, address
	}
	return os.NewSyscallError("set TCP MD5 key", unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig))
}

// greetFor bounds the time for all nodes.
const greetFor = 20 * time.Second

// greet greets the agents of the other nodes.
func (e *examination) greet(ctx context.Context) map[string]greeted {
	all := map[string]greeted{}
	if e.cluster == nil || e.noNode != nil {
		return all
	}
	ctx, cancel := context.WithTimeout(ctx, greetFor)
	defer cancel()
	n := nodes.New(nodes.Config{Cluster: *e.cluster, Node: e.node})
	names := n.Names()
	slots := make(chan struct{}, atOnce)
	var mu sync.Mutex
	each(len(names), func(i int) {
		slots <- struct{}{}
		defer func() { <-slots }()
		g, err := n.Greet(ctx, names[i])
		mu.Lock()
		defer mu.Unlock()
		all[names[i]] = greeted{g, err}
	})
	return all
}

// names lists the nodes that were greeted, in order.
func names(all map[string]greeted) []string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func lookAtNodes(_ context.Context, e *examination) (found []Finding) {
	if e.cluster == nil || e.noNode != nil {
		return blind("whether the other nodes' agents answer: the node is not known")
	}
	all := e.greeted()
	for _, name := range names(all) {
		err := all[name].err
		if err == nil {
			continue
		}
		if said := e.problemOf(name); said != "" {
			found = append(found, sentence(Wrong, said))
			continue
		}
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			found = append(found, sentence(Note, err.Error())) // it may not be set up yet
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			found = append(found, sentence(Unknown, err.Error()))
		default:
			found = append(found, sentence(Wrong, err.Error()))
		}
	}
	if len(found) == 0 {
		return good("%s, and agree with this one's cluster file", plural.Of(len(all), "agent of another node answers", "agents of other nodes answer"))
	}
	return found
}

// problemOf is what this node's agent says of another node, and since when.
func (e *examination) problemOf(node string) string {
	if e.status == nil {
		return ""
	}
	for _, p := range e.status.Problems {
		if strings.HasPrefix(p, "node "+node+" ") || strings.HasPrefix(p, "node "+node+":") {
			return p
		}
	}
	return ""
}

// lookAtPort says whether the other nodes' agents can call this node's. Beside an agent
// that shows: each keeps a connection open. Without one, packets of our own are tried.
func lookAtPort(ctx context.Context, e *examination) (found []Finding) {
	if e.cluster == nil || e.noNode != nil {
		return blind("whether the agents' port is open: the node is not known")
	}
	if e.status != nil {
		return e.callers()
	}
	if os.Geteuid() != 0 || e.runs() {
		return unknown("whether this node's own filter lets the other nodes in was not tried", nil)
	}
	tried := 0
	for _, n := range e.cluster.Nodes {
		for _, a := range []netip.Addr{n.Address, n.Address6} {
			to, ok := e.from(a)
			if n.Name == e.node.Name || !a.IsValid() || !ok || tried >= atOnce {
				continue
			}
			tried++
			text, err := e.survey.CheckService(ctx, a, to, e.cluster.AgentPort)
			switch {
			case err != nil:
				return append(found, sentence(Unknown, err.Error()))
			case text != "":
				found = append(found, sentence(Wrong, text))
			}
		}
	}
	switch {
	case len(found) > 0:
		return found
	case tried == 0:
		return good("no other node has an address of a family that this machine has")
	}
	return good("packets of other nodes get to TCP port %d of this node, as tried with our own", e.cluster.AgentPort)
}

// settled is how long an agent runs until all others have called it.
const settled = time.Minute

// callers says which nodes' agents answer this node, and have no connection here.
func (e *examination) callers() (found []Finding) {
	all := e.greeted()
	var now []netip.Addr
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		now = append(now, connected(e.read(path), e.cluster.AgentPort)...)
	}
	state := Wrong
	if time.Since(e.status.Since) < settled {
		state = Unknown // they find it in their own time
	}
	for _, name := range names(all) {
		n, err := e.cluster.Node(name)
		if all[name].err != nil || err != nil || slices.Contains(now, n.Address) || slices.Contains(now, n.Address6) {
			continue
		}
		found = append(found, Finding{State: state, What: fmt.Sprintf("the agent of %s answers this node, and has no connection to TCP port %d here", name, e.cluster.AgentPort), WayOut: fmt.Sprintf("see vmfabric status there, and that this node's filter lets its address in (ufw allow proto tcp from %s to any port %d; nft list ruleset)", n.Source(e.node.Address), e.cluster.AgentPort)})
	}
	if len(found) == 0 {
		return good("the agents of the nodes that answer have connections to this one")
	}
	return found
}

// connected lists the remote addresses of established connections to a local port, by
// /proc/net/tcp or tcp6 (proc(5)): addresses are words in the order of this machine.
func connected(text string, port uint16) (all []netip.Addr) {
	const established = "01"
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != established {
			continue
		}
		_, local, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(local, 16, 16); err != nil || uint16(n) != port {
			continue
		}
		if a, ok := procAddress(f[2]); ok {
			all = append(all, a)
		}
	}
	return all
}

// procAddress reads an address of /proc/net/tcp or tcp6, with its port.
func procAddress(text string) (netip.Addr, bool) {
	digits, _, _ := strings.Cut(text, ":")
	var b []byte
	for i := 0; i+8 <= len(digits); i += 8 {
		word, err := strconv.ParseUint(digits[i:i+8], 16, 32)
		if err != nil {
			return netip.Addr{}, false
		}
		b = binary.NativeEndian.AppendUint32(b, uint32(word))
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}

const (
	// apart is how far two nodes' clocks may be apart, beside what the exchange leaves open.
	apart = 2 * time.Second
	// unsynchronized is what adjtimex(2) returns of a clock that nothing keeps right
	// (TIME_ERROR).
	unsynchronized = 5
)

func lookAtClock(_ context.Context, e *examination) []Finding {
	found := clocks(e.greeted())
	if state, err := unix.Adjtimex(&unix.Timex{}); err == nil && state == unsynchronized && len(found) == 0 {
		return []Finding{note("nothing keeps this machine's clock right, as the kernel has it", "timedatectl set-ntp true, or run chrony")}
	}
	if len(found) == 0 {
		return good("the clock is kept right, and agrees with those of the nodes that answer")
	}
	return found
}

// clocks compares the clocks of the nodes that were greeted with this one's.
func clocks(all map[string]greeted) (found []Finding) {
	for _, name := range names(all) {
		g := all[name]
		if g.err != nil || g.Ahead.Abs() <= apart+g.Within {
			continue
		}
		way := "ahead of"
		if g.Ahead < 0 {
			way = "behind"
		}
		found = append(found, wrong(fmt.Sprintf("the clock of %s is %v %s this node's", name, g.Ahead.Abs().Round(100*time.Millisecond), way), "see timedatectl on both nodes, and run chrony or systemd-timesyncd"))
	}
	return found
}

func lookAtRegistry(ctx context.Context, e *examination) (found []Finding) {
	switch {
	case e.cluster == nil:
		return blind("the registry: the cluster is not known")
	case e.status != nil && e.status.Registry != nil:
		for _, p := range e.status.Registry.Problems {
			found = append(found, sentence(Wrong, p))
		}
	case e.cluster.Registry.Etcd != nil:
		r, err := etcd.New(e.cluster)
		var texts []string
		if err == nil {
			texts, err = r.Examine(ctx)
		}
		if err != nil {
			texts = append(texts, err.Error())
		}
		for _, text := range texts {
			found = append(found, sentence(Wrong, text))
		}
	}
	if len(found) > 0 {
		return found
	}
	if e.cluster.Registry.Etcd != nil {
		return good("etcd answers on all %d endpoints", len(e.cluster.Registry.Etcd.Endpoints))
	}
	return good("this node has a registry of its own")
}
