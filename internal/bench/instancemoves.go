package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

// instanceMove is the measurement of a move of a running LXD instance.
type instanceMove struct {
	probed  []probed
	overlap time.Duration // for which the instance ran on both nodes; negative: on neither
	nowhere time.Duration // from its end on the one node until it served on the other
	took    time.Duration // lxc
}

// stateless is a lab with two LXDs that trust each other, and an instance.
type stateless struct {
	*lab
	lxs       [2]*hypervisors.LXD
	ports     [2]*portWatch
	guest     guest
	container *hypervisors.Container
	at        int
}

// instanceMoves adds the moves of an LXD instance to a section.
func (b *bench) instanceMoves(ctx context.Context, s *section) (err error) {
	if err := hypervisors.Available(ctx, "lxd"); err != nil {
		s.notes = append(s.notes, fmt.Sprintf("Moves between LXD servers were not measured: %v.", err))
		return nil
	}
	b.say("  LXD")
	l, err := b.newLab(ctx, "lxdmoves", 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	st := &stateless{lab: l, guest: guestNumber(0)}
	defer st.stopWatching()
	if err := st.start(ctx, b); err != nil {
		return err
	}
	var moves []instanceMove
	for range b.size.instMoves {
		m, err := st.move(ctx, b.size.moveRate)
		if err != nil {
			return fmt.Errorf("move of an LXD instance: %w", err)
		}
		b.say("    overlap %s ms, nowhere for %s ms, lost %d and %d, gap %s", ms(m.overlap), ms(m.nowhere), m.probed[0].Lost, m.probed[1].Lost, ms(m.probed[0].LongestGap))
		moves = append(moves, m)
	}
	instanceTable(s, moves)
	return nil
}

func (st *stateless) start(ctx context.Context, b *bench) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, name := range []string{"node1", "node2"} {
		node := st.top.Nodes[name]
		lx, err := hypervisors.StartLXD(ctx, node, hypervisors.LXDOptions{})
		if err != nil {
			return err
		}
		st.lxs[i] = lx
		if _, err := b.startFollower(ctx, st.lab, name, lx.Socket()); err != nil {
			return err
		}
		if st.ports[i], err = watchPort(node, st.guest.port()); err != nil {
			return err
		}
	}
	if err := errors.Join(st.lxs[0].Trust(ctx, st.lxs[1]), st.lxs[1].Trust(ctx, st.lxs[0])); err != nil {
		return err
	}
	nic := fabric.NIC{Addresses: []netip.Addr{st.guest.a4, st.guest.a6}}
	var err error
	st.container, err = st.lxs[0].Launch(ctx, hypervisors.ContainerOptions{Name: st.guest.name, NICs: []fabric.NIC{nic}, Gateway: st.cluster.Gateway})
	return err
}

func (st *stateless) stopWatching() {
	for _, w := range st.ports {
		if w != nil {
			w.close()
		}
	}
}

// move moves the instance to the other node, under so many requests a second.
func (st *stateless) move(ctx context.Context, rate int) (m instanceMove, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	to := []netip.Addr{st.guest.a4, st.guest.a6}
	for _, a := range to {
		if _, err := st.top.Client.Ping(ctx, a); err != nil {
			return m, err
		}
	}
	probers, err := probeEvery(st.top.Client, time.Second/time.Duration(rate), to...)
	if err != nil {
		return m, err
	}
	w := &watchers{probers: probers}
	defer func() { m.probed, _ = w.stop() }()
	time.Sleep(moveLead)
	for _, p := range st.ports {
		p.arm()
	}
	source := st.lxs[st.at].Host()
	began := time.Now()
	if err := st.container.Move(ctx, st.lxs[1-st.at], "--stateless"); err != nil {
		return m, err
	}
	m.took = time.Since(began)
	if err := st.container.WaitReady(ctx); err != nil {
		return m, err
	}
	ready, err := st.readyAt(ctx)
	if err != nil {
		return m, err
	}
	_, left := st.ports[st.at].times()
	came := st.ports[1-st.at].cameUp()
	if left.IsZero() || came.IsZero() {
		return m, errors.New("the links were not seen to come and go")
	}
	m.overlap, m.nowhere = left.Sub(came), max(0, ready.Sub(left))
	st.at = 1 - st.at
	if err := core.Until(ctx, w.next()); err != nil {
		return m, err
	}
	time.Sleep(moveTail)
	return m, core.Until(ctx, func() error {
		if source.HasLink(st.guest.port()) {
			return fmt.Errorf("%s is still on %s", st.guest.port(), source.Name())
		}
		return nil
	})
}

// readyAt returns when the instance began to serve: its first process makes a file
// then.
func (st *stateless) readyAt(ctx context.Context) (time.Time, error) {
	pid, err := st.container.Pid(ctx)
	if err != nil {
		return time.Time{}, err
	}
	info, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root/dev/ready"))
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func instanceTable(s *section, moves []instanceMove) {
	t := table{head: []string{
		"`lxc move --stateless`", "moves", "lost nothing", "lost", "duplicates", "longest gap ms", "on both nodes ms", "on neither ms", "gap less neither ms", "lxc s",
	}}
	for _, four := range []bool{true, false} {
		var lost, twice []int
		var gaps, over, overlaps, nowhere, took []time.Duration
		lossless := 0
		name := ""
		for _, m := range moves {
			for _, p := range m.probed {
				if p.to.Is4() != four {
					continue
				}
				name = familyName(p.to)
				lost, twice = append(lost, p.Lost), append(twice, p.Duplicates)
				gaps, over = append(gaps, p.LongestGap), append(over, p.LongestGap-m.nowhere)
				overlaps, nowhere, took = append(overlaps, m.overlap), append(nowhere, m.nowhere), append(took, m.took)
				if p.Lost == 0 {
					lossless++
				}
			}
		}
		t.row(name, count(len(lost)), count(lossless), spread(lost, count), spread(twice, count), spread(gaps, ms),
			spread(overlaps, ms), spread(nowhere, ms), spread(over, ms), spread(took, seconds))
	}
	s.tables = append(s.tables, t)
	s.method += fmt.Sprintf(`

The last table is of a running LXD instance, without CRIU, between two servers that trust each other: each such move starts the guest
anew on the other node, %d times to and fro, with the agents following LXD. LXD starts it there before it ends it here: the time for which it
has a carrier on both nodes is LXD's, and so is that from its end here until its first process serves there (a file that this
process makes then). No session outlives it, so only echo requests are sent, as above.`, len(moves))
}
