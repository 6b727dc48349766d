package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// moments are when things happened in a guest that starts.
type moments struct {
	mu          sync.Mutex
	up          time.Time    // the NIC is up
	asked, told [2]time.Time // in a family: the first request, and the answer with the lease
	address     [2]time.Time // it has the address
	out, in     [2]time.Time // the first answer to the guest, and to the client beyond the core
}

// boots starts the guest, and notes when it is online.
func (tr *trial) boots() {
	addresses, links, done := make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64), make(chan struct{})
	tr.t.Cleanup(func() { close(done) })
	require.NoError(tr.t, netlink.AddrSubscribeAt(tr.guest.NsHandle(), addresses, done))
	require.NoError(tr.t, netlink.LinkSubscribeAt(tr.guest.NsHandle(), links, done))
	go func() {
		for {
			select {
			case u := <-addresses:
				tr.noteAddress(u)
			case u := <-links:
				if u.Attrs() != nil && u.Attrs().Name == clients.NIC && u.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
					tr.since.note(&tr.since.up)
				}
			case <-done:
				return
			}
		}
	}()
	require.NoError(tr.t, tr.guest.Boot(tr.client.Start))
}

func (tr *trial) noteAddress(u netlink.AddrUpdate) {
	ip, _ := netip.AddrFromSlice(u.LinkAddress.IP)
	for family, a := range tr.own {
		if u.NewAddr && ip.Unmap() == a && u.Flags&unix.IFA_F_TENTATIVE == 0 && tr.since.note(&tr.since.address[family]) {
			// Not before: to an address that does not answer yet the node asks once a second.
			tr.probe(tr.guest.Host, a, resolvers[family], &tr.since.out[family])
			tr.probe(tr.s.top.Client, resolvers[family], a, &tr.since.in[family])
		}
	}
}

// note notes that something happened now, if it is the first time.
func (m *moments) note(at *time.Time) (first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if first = at.IsZero(); first {
		*at = time.Now()
	}
	return first
}

// probe notes when an address first answers.
func (tr *trial) probe(h *core.Host, from, to netip.Addr, at *time.Time) {
	p, err := h.ProbeFrom(from, to, 20*time.Millisecond)
	if err != nil {
		tr.t.Log(err) // the table then has no time
		return
	}
	go func() {
		defer p.Abandon()
		select {
		case <-p.First():
			tr.since.note(at)
		case <-tr.t.Context().Done():
		}
	}()
}

// exchanged notes when the client first asked, and was told.
func (tr *trial) exchanged() {
	families := map[fabric.ContactProtocol]int{fabric.DHCPv4: 0, fabric.DHCPv6: 1}
	for _, said := range tr.messages() {
		f, ok := families[said.Protocol]
		if !ok {
			continue
		}
		if at := &tr.since.asked[f]; said.FromGuest && at.IsZero() {
			*at = said.At
		}
		if at := &tr.since.told[f]; said.Answers() && at.IsZero() {
			*at = said.At
		}
	}
}

// figures gives the times of a family in milliseconds after the link is up: of the
// address, of the first answer to both the guest and the client beyond the core, and
// which step before that took the longest.
func (m *moments) figures(family int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := []time.Time{m.up, m.asked[family], m.told[family], m.address[family], m.out[family]}
	names := []string{"asks", "exchange", "address", "answer"}
	longest, took := "", time.Duration(-1)
	for i, name := range names {
		if at[i+1].IsZero() {
			return []string{"-", "-", "-"}
		}
		if d := at[i+1].Sub(at[i]); d > took {
			longest, took = fmt.Sprintf("%s %d", name, d.Milliseconds()), d
		}
	}
	after := func(at time.Time) string { return fmt.Sprint(at.Sub(m.up).Milliseconds()) }
	return []string{after(m.address[family]), after(latest(m.out[family], m.in[family])), longest}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// printTrials prints what was seen as the table of docs/guests.md: a row for a client and
// a family, in which cells that differ have the values of all roots.
func printTrials(t *testing.T, trials []*trial) {
	var b strings.Builder
	line := func(cells ...string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	heads := []string{
		"client", "versions", "family", "address", "default route", "in and out", "DNS", "asks again by", "after a move",
		"ms to address", "to first ping", "the longest step",
	}
	line(heads...)
	line(slices.Repeat([]string{"---"}, len(heads))...)
	for i, first := range trials {
		if slices.ContainsFunc(trials[:i], func(tr *trial) bool { return tr.client.Name == first.client.Name }) {
			continue
		}
		for family := range first.own {
			if cells := cellsOf(trials, first.client, family); cells != nil {
				line(cells...)
			}
		}
	}
	t.Log("\n" + b.String())
}

// cellsOf gives the row of a client and a family; nil: it has nothing to do with that
// family, or was not run.
func cellsOf(trials []*trial, c clients.Client, family int) []string {
	var columns [][]string // of one trial each
	for _, tr := range trials {
		if tr.client.Name != c.Name || tr.t == nil || tr.extent(family) == clients.Nothing {
			continue
		}
		saw := tr.saw[family]
		columns = append(columns, append([]string{
			upstream(tr.version), saw.address, saw.route, saw.reach, saw.dns, saw.renew, saw.moved,
		}, tr.since.figures(family)...))
	}
	if columns == nil {
		return nil
	}
	var cells []string
	for n := range columns[0] {
		var values []string
		for _, column := range columns {
			values = append(values, column[n])
		}
		if len(slices.Compact(slices.Clone(values))) == 1 {
			values = values[:1]
		}
		cells = append(cells, strings.Join(values, " / "))
	}
	return slices.Insert(append([]string{c.Name}, cells...), 2, []string{"IPv4", "IPv6"}[family])
}

// upstream gives a version of Debian without what Debian adds.
func upstream(version string) string {
	if _, after, found := strings.Cut(version, ":"); found {
		version = after
	}
	version, _, _ = strings.Cut(version, "+")
	if i := strings.LastIndexByte(version, '-'); i > 0 {
		version = version[:i]
	}
	return version
}
