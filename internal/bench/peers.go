package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"golang.org/x/sys/unix"
)

// portCommands are the commands by which a hook in shell makes a port. With the two
// routes there are eight.
const portCommands = `set -e
ip tuntap add dev "$T" mode tap
ip link set dev "$T" address "$MAC" up
sysctl -qw "net.ipv4.conf.$T.rp_filter=1" "net.ipv4.conf.$T.send_redirects=0"
sysctl -qw "net.ipv6.conf.$T.accept_ra=0" "net.ipv6.conf.$T.accept_redirects=0"
ip addr add "$GW4/32" dev "$T"
ip addr add "$GW6/64" dev "$T" nodad
`

// Hooks in shell, as operators write them without an agent.
const (
	birdUp = portCommands + `ip route add "$A4/32" dev "$T"
ip -6 route add "$A6/128" dev "$T"
echo "route $A4/32 blackhole;" >> "$FILE4"
echo "route $A6/128 blackhole;" >> "$FILE6"
birdc -s "$CTL" configure
`
	birdDown = `set -e
sed -i "/^route $A4\/32 /d" "$FILE4"
sed -i "/^route $A6\/128 /d" "$FILE6"
birdc -s "$CTL" configure
ip link del "$T"
`
	// FRR makes the routes itself, and would prefer kernel routes of the same
	// prefix. A tap whose guest does not run yet has no carrier; `no link-detect`
	// makes FRR use it all the same.
	frrUp = portCommands + `vtysh -N "$SPACE" -c 'configure terminal' -c "interface $T" -c 'no link-detect' -c exit \
	-c "ip route $A4/32 $T" -c "ipv6 route $A6/128 $T"
`
	frrDown = `set -e
vtysh -N "$SPACE" -c 'configure terminal' -c "no ip route $A4/32 $T" -c "no ipv6 route $A6/128 $T"
ip link del "$T"
`
)

// shell is a node with hooks in shell.
type shell struct {
	node     *core.Host
	up, down string
	env      []string
}

func (l *lab) newShell(node *core.Host, up, down string, env ...string) *shell {
	gw := l.cluster.Gateway
	return &shell{node: node, up: up, down: down, env: append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
		"MAC=" + gw.MAC.String(), "GW4=" + gw.IPv4.String(), "GW6=" + gw.IPv6.String(),
	}, env...)}
}

func (s *shell) method(name string) *method {
	script := func(text string) func(context.Context, guest) (span, error) {
		return func(ctx context.Context, g guest) (span, error) {
			cmd := exec.CommandContext(ctx, "/bin/sh", "-c", text)
			cmd.Env = append(s.env, "T="+g.port(), "A4="+g.a4.String(), "A6="+g.a6.String())
			return runIn(s.node, cmd)
		}
	}
	return &method{name: name, up: script(s.up), down: script(s.down)}
}

// runIn runs a program to its end in a host.
func runIn(node *core.Host, cmd *exec.Cmd) (span, error) {
	var said strings.Builder
	var began time.Time
	cmd.Stderr = &said
	err := node.Do(func() error {
		began = time.Now()
		return cmd.Start()
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return since(began), err
}

// hooks is the agent with its hooks as libvirt runs them, before and after a
// hypervisor opens the tap.
func (a *agent) hooks(name, hook string) *method {
	run := func(ctx context.Context, op string, g guest) (span, error) {
		return runIn(a.node, hookCommand(ctx, hook, a.socket, op, g))
	}
	var tap *os.File
	return &method{
		name: name,
		up: func(ctx context.Context, g guest) (span, error) {
			x, err := run(ctx, "prepare", g)
			if err == nil {
				tap, err = holdTap(a.node, g.port())
			}
			if err == nil {
				_, err = run(ctx, "started", g)
			}
			return since(x.began), err
		},
		down: func(ctx context.Context, g guest) (span, error) {
			x, err := run(ctx, "stopped", g)
			tap.Close()
			if err == nil {
				_, err = run(ctx, "release", g)
			}
			return since(x.began), err
		},
	}
}

// holdTap opens a tap as a hypervisor does.
func holdTap(node *core.Host, name string) (*os.File, error) {
	fd, err := openTap(node, name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openTap opens a tap without waiting for what it brings.
func openTap(node *core.Host, name string) (fd int, err error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	err = node.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	return fd, err
}

// duel is a race of vmfabric against one other method.
type duel struct{ ours, other *method }

// measurePeers compares the hooks with those that operators write.
func measurePeers(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "peers", 3)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	var duels []duel
	first := 0
	fight := func(d duel, n int) error {
		duels = append(duels, d)
		err := l.race(ctx, []*method{d.ours, d.other}, first, n)
		first += 2 * (n + 1)
		return err
	}
	const us = "vmfabric: hooks prepare and started, stopped and release"
	files := routeFiles{filepath.Join(l.Dir(), "guests4.conf"), filepath.Join(l.Dir(), "guests6.conf")}
	bird, err := l.startFileBird(ctx, files)
	if err != nil {
		return s, err
	}
	sh := l.newShell(l.top.Nodes["node2"], birdUp, birdDown, "FILE4="+files.four, "FILE6="+files.six, "CTL="+bird.Socket())
	for _, n := range b.size.file {
		b.say("  BIRD, %s routes in its file", count(n))
		if err := l.fill(ctx, bird, files, n); err != nil {
			return s, err
		}
		if err := fight(duel{a.hooks(us, b.bin.hook), sh.method(fmt.Sprintf("shell hook, BIRD with %s routes in a file", count(n)))}, b.size.peers); err != nil {
			return s, err
		}
	}
	// A BIRD on another node would only disturb the next measurement.
	if err := errors.Join(l.fill(ctx, bird, files, 0), bird.Stop()); err != nil {
		return s, err
	}
	if missing := routers.Available(ctx, "frr"); missing != nil {
		s = peersSection(duels)
		s.notes = append(s.notes, fmt.Sprintf("FRR was not measured: %v.", missing))
		return s, nil
	}
	b.say("  FRR")
	node := l.top.Nodes["node3"]
	frr, err := routers.StartFRR(ctx, node, l.nodeFRR(node))
	if err != nil {
		return s, err
	}
	if err := established(ctx, frr); err != nil {
		return s, err
	}
	space := strings.ReplaceAll(node.Namespace(), ".", "_") // the lab's name of FRR's pathspace
	if err := fight(duel{a.hooks(us, b.bin.hook), l.newShell(node, frrUp, frrDown, "SPACE="+space).method("shell hook, FRR by vtysh")}, b.size.frr); err != nil {
		return s, err
	}
	return peersSection(duels), nil
}

// routeFiles are the files from which a BIRD reads its static routes.
type routeFiles struct{ four, six string }

func (f routeFiles) write(gs []guest) error {
	var four, six strings.Builder
	for _, g := range gs {
		fmt.Fprintf(&four, "route %s/32 blackhole;\n", g.a4)
		fmt.Fprintf(&six, "route %s/128 blackhole;\n", g.a6)
	}
	return errors.Join(os.WriteFile(f.four, []byte(four.String()), 0o644), os.WriteFile(f.six, []byte(six.String()), 0o644))
}

func (l *lab) startFileBird(ctx context.Context, files routeFiles) (*routers.Bird, error) {
	if err := files.write(nil); err != nil {
		return nil, err
	}
	return l.startNodeBird(ctx, l.top.Nodes["node2"], birdFiles(files.four, files.six))
}

// background is the number of the first guest that exists only as a line in a file.
const background = 100_000

// fill writes BIRD's files with n routes, half of each family, and waits until the
// core gateway has them, or for n = 0 until it has none.
func (l *lab) fill(ctx context.Context, bird *routers.Bird, files routeFiles, n int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	gs := guests(background, n/2)
	if err := files.write(gs); err != nil {
		return err
	}
	if _, err := bird.Query(ctx, "configure"); err != nil {
		return err
	}
	if err := l.core.has(ctx, prefixesOf(gs)...); err != nil {
		return err
	}
	if n == 0 {
		return l.core.empty(ctx)
	}
	return nil
}

func peersSection(duels []duel) section {
	s := section{
		title: "Against hooks in shell",
		method: `
The hook of a node without an agent makes the port with eight commands (` + "`ip`, `sysctl`" + `; six with FRR, which makes the routes
itself), and tells the routing daemon. From just before the first process is started until the core gateway has both
routes, or neither. vmfabric's way up is two processes, with the tap opened in between, as libvirt does it. Each pair is
measured by turns.`,
	}
	t := table{head: []string{"", "up p50 ms", "up p99 ms", "up factor", "down p50 ms", "down p99 ms", "down factor"}}
	for _, d := range duels {
		for _, m := range []*method{d.ours, d.other} {
			t.row(m.name, ms(m.ups.p50()), ms(m.ups.p99()), times(ratio(m.ups.p50(), d.ours.ups.p50())),
				ms(m.downs.p50()), ms(m.downs.p99()), times(ratio(m.downs.p50(), d.ours.downs.p50())))
		}
	}
	s.tables = []table{t}
	if len(duels) > 0 {
		s.notes = append(s.notes, fmt.Sprintf("%s guests in each pair.", count(len(duels[0].ours.ups))))
	}
	return s
}
