package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"golang.org/x/sys/unix"
)

// baseline is a way to announce an instance of LXD, and its times.
type baseline struct {
	name      string
	guest     guest
	container *hypervisors.Container
	port      *portWatch

	ups, downs     sample // from the link, or its carrier, to the core gateway's route
	starts, deaths sample // from the command, or the kill, to the same
}

// measureLXD compares vmfabric with LXD's own BGP server.
func measureLXD(ctx context.Context, b *bench) (s section, err error) {
	if err := hypervisors.Available(ctx, "lxd"); err != nil {
		return section{title: lxdTitle, method: fmt.Sprintf("Not measured: %v.", err)}, nil
	}
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		return section{title: lxdTitle, method: fmt.Sprintf("Not measured: %v, which LXD's managed networks need.", err)}, nil
	}
	l, err := b.newLabOf(ctx, "lxd", 2, "open")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	ours, err := b.ourInstance(ctx, l, guestNumber(0))
	if err != nil {
		return s, err
	}
	defer ours.port.close()
	theirs, err := l.bridgedInstance(ctx, guestNumber(1))
	if err != nil {
		return s, err
	}
	defer theirs.port.close()
	for i := range b.size.instances + 1 {
		for _, r := range []*baseline{ours, theirs} {
			if err := r.live(ctx, l); err != nil {
				return s, fmt.Errorf("%s: %w", r.name, err)
			}
			if i == 0 {
				r.ups, r.downs, r.starts, r.deaths = nil, nil, nil, nil
			}
		}
	}
	return lxdSection(ours, theirs), nil
}

// ourInstance makes an instance on node1 whose link LXD makes and the agent adopts.
func (b *bench) ourInstance(ctx context.Context, l *lab, g guest) (*baseline, error) {
	node := l.top.Nodes["node1"]
	lx, err := hypervisors.StartLXD(ctx, node, hypervisors.LXDOptions{})
	if err != nil {
		return nil, err
	}
	if _, err := b.startFollower(ctx, l, "node1", lx.Socket()); err != nil {
		return nil, err
	}
	c, err := lx.Init(ctx, hypervisors.ContainerOptions{Name: g.name, NICs: g.vm("").NICs, Gateway: l.cluster.Gateway})
	if err != nil {
		return nil, err
	}
	port, err := watchPort(node, g.port())
	return &baseline{name: "vmfabric", guest: g, container: c, port: port}, err
}

// bridgedInstance makes an instance on node2 that LXD's BGP server announces.
func (l *lab) bridgedInstance(ctx context.Context, g guest) (*baseline, error) {
	node := l.top.Nodes["node2"]
	lx, err := hypervisors.StartLXD(ctx, node, hypervisors.LXDOptions{})
	if err != nil {
		return nil, err
	}
	asn := fmt.Sprint(l.cluster.ASN)
	network := []string{"network", "create", "br0", "ipv4.address=none", "ipv6.address=none"}
	for i, rr := range l.reflectors() {
		network = append(network, fmt.Sprintf("bgp.peers.rr%d.address=%s", i, rr), fmt.Sprintf("bgp.peers.rr%d.asn=%s", i, asn))
	}
	for _, args := range [][]string{
		{"config", "set", "core.bgp_address=" + node.Addr4().String() + ":179", "core.bgp_asn=" + asn, "core.bgp_routerid=" + node.Addr4().String()},
		network,
	} {
		if _, err := lx.Lxc(ctx, args...); err != nil {
			return nil, err
		}
	}
	c, err := lx.Init(ctx, hypervisors.ContainerOptions{Name: g.name})
	if err != nil {
		return nil, err
	}
	if _, err := lx.Lxc(ctx, "config", "device", "add", g.name, "eth0", "nic", "network=br0", "name=eth0",
		"host_name="+g.port(), "ipv4.routes.external="+fabric.HostPrefix(g.a4).String()); err != nil {
		return nil, err
	}
	port, err := watchPort(node, g.port())
	return &baseline{name: "LXD's BGP server", guest: g, container: c, port: port}, err
}

// live starts and kills the instance once.
func (r *baseline) live(ctx context.Context, l *lab) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	prefix := fabric.HostPrefix(r.guest.a4)
	var began time.Time
	// LXD is busy with an instance's end for a moment after it is stopped.
	err := core.Until(ctx, func() error {
		l.core.arm(prefix)
		r.port.arm()
		began = time.Now()
		return r.container.Start(ctx)
	})
	if err != nil {
		return err
	}
	at, err := l.core.come(ctx, prefix)
	if err != nil {
		return err
	}
	made, _ := r.port.times()
	r.ups.add(at.Sub(made))
	r.starts.add(at.Sub(began))
	time.Sleep(quietAfter)

	pid, err := r.container.Pid(ctx)
	if err != nil {
		return err
	}
	r.port.arm()
	began = time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if at, err = l.core.gone(ctx, prefix); err != nil {
		return err
	}
	if _, lost := r.port.times(); !lost.IsZero() {
		r.downs.add(at.Sub(lost))
	}
	r.deaths.add(at.Sub(began))
	return core.Until(ctx, func() error {
		state, err := r.container.State(ctx)
		if err == nil && state != "Stopped" {
			err = fmt.Errorf("instance %s is %s", r.guest.name, state)
		}
		return err
	})
}

// portWatch notes when a link appears, and when it gets and loses its carrier.
type portWatch struct {
	done  chan struct{}
	ended chan struct{}

	mu             sync.Mutex
	made, up, lost time.Time
}

func watchPort(node *core.Host, name string) (*portWatch, error) {
	w := &portWatch{done: make(chan struct{}), ended: make(chan struct{})}
	updates := make(chan netlink.LinkUpdate, 1024)
	if err := netlink.LinkSubscribeAt(node.NsHandle(), updates, w.done); err != nil {
		return nil, err
	}
	go func() {
		defer close(w.ended)
		carrier := false
		for u := range updates {
			if u.Attrs().Name == name {
				carrier = w.note(u, carrier)
			}
		}
	}()
	return w, nil
}

func (w *portWatch) note(u netlink.LinkUpdate, had bool) (carrier bool) {
	now := time.Now()
	carrier = u.Header.Type == unix.RTM_NEWLINK && u.IfInfomsg.Flags&unix.IFF_LOWER_UP != 0
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.made.IsZero() {
		w.made = now
	}
	if carrier && w.up.IsZero() {
		w.up = now
	}
	if had && !carrier && w.lost.IsZero() {
		w.lost = now
	}
	return carrier
}

func (w *portWatch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made, w.up, w.lost = time.Time{}, time.Time{}, time.Time{}
}

func (w *portWatch) times() (made, lost time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made, w.lost
}

// cameUp returns when the link first had carrier since arm.
func (w *portWatch) cameUp() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}

func (w *portWatch) close() {
	close(w.done)
	<-w.ended
}

const lxdTitle = "Against LXD's own BGP server"

func lxdSection(ours, theirs *baseline) section {
	s := section{
		title: lxdTitle,
		method: `
Two nodes with an LXD each, the same reflectors and core gateway. On one, an instance has a p2p NIC, and the agent
follows LXD without a hook; on the other it has a NIC on a managed bridge with ` + "`ipv4.routes.external`" + `, which LXD announces.
Until the core gateway's kernel has the IPv4 route, or has it no more: from the first notification of the host side's
link, and from its loss of carrier; and from the command ` + "`lxc start`" + `, and the kill of the guest's init. By turns.`,
	}
	t := table{head: []string{"", "link to route p50 ms", "p99 ms", "carrier lost to withdrawn p50 ms", "p99 ms"}}
	u := table{head: []string{"", "lxc start to route p50 ms", "p99 ms", "kill to withdrawn p50 ms", "p99 ms"}}
	for _, r := range []*baseline{ours, theirs} {
		t.row(r.name, ms(r.ups.p50()), ms(r.ups.p99()), ms(r.downs.p50()), ms(r.downs.p99()))
		u.row(r.name, ms(r.starts.p50()), ms(r.starts.p99()), ms(r.deaths.p50()), ms(r.deaths.p99()))
	}
	factor := func(q func(sample) time.Duration, a, b sample) string { return times(ratio(q(b), q(a))) }
	t.row("factor", factor(sample.p50, ours.ups, theirs.ups), factor(sample.p99, ours.ups, theirs.ups),
		factor(sample.p50, ours.downs, theirs.downs), factor(sample.p99, ours.downs, theirs.downs))
	u.row("factor", factor(sample.p50, ours.starts, theirs.starts), factor(sample.p99, ours.starts, theirs.starts),
		factor(sample.p50, ours.deaths, theirs.deaths), factor(sample.p99, ours.deaths, theirs.deaths))
	s.tables = []table{t, u}
	s.notes = append(s.notes, fmt.Sprintf("%s starts and ends each.", count(len(ours.ups))))
	return s
}
