package core

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// dumpLines is how much of a log Dump shows.
const dumpLines = 30

// Dump writes the state of each host of the lab for people: links, addresses,
// routes of both families, rules, neighbours, its daemons, and the ends of all logs
// below [Host.Dir], also those of guests.
func (l *Lab) Dump(w io.Writer) {
	fmt.Fprintf(w, "lab %s\n", l.id)
	l.mu.Lock()
	hosts, daemons := slices.Clone(l.hosts), slices.Clone(l.daemons)
	l.mu.Unlock()
	for _, h := range hosts {
		fmt.Fprintf(w, "\n=== %s (%s)\n", h.name, h.Namespace())
		h.dump(w)
		for _, d := range daemons {
			if d.host == h {
				fmt.Fprintf(w, "daemon %s, process %d, %s\n", d.name, d.Pid(), d.state())
			}
		}
		h.dumpLogs(w)
	}
}

func (h *Host) dumpLogs(w io.Writer) {
	_ = filepath.WalkDir(h.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".log" {
			return nil // show all that can be read
		}
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte(err.Error())
		}
		name, _ := filepath.Rel(h.dir, path)
		fmt.Fprintf(w, "--- %s\n%s\n", name, Tail(string(b), dumpLines))
		return nil
	})
}

func (h *Host) dump(w io.Writer) {
	links, err := dump(h.nl.LinkList)
	if err != nil {
		fmt.Fprintf(w, "links: %v\n", err)
	}
	names := map[int]string{}
	for _, link := range links {
		a := link.Attrs()
		names[a.Index] = a.Name
		fmt.Fprintf(w, "%s: %s %s mac %s mtu %d group %d", a.Name, link.Type(), a.OperState, a.HardwareAddr, a.MTU, a.Group)
		if a.Alias != "" {
			fmt.Fprintf(w, " alias %s", a.Alias)
		}
		addrs, _ := dump(func() ([]netlink.Addr, error) { return h.nl.AddrList(link, netlink.FAMILY_ALL) })
		for _, addr := range addrs {
			fmt.Fprintf(w, " %s", addr.IPNet)
		}
		fmt.Fprintln(w)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.Routes(family, 0)
		if err != nil {
			fmt.Fprintln(w, err)
		}
		for _, r := range routes {
			fmt.Fprintf(w, "route %s\n", r)
		}
		rules, _ := dump(func() ([]netlink.Rule, error) { return h.nl.RuleList(family) })
		for _, r := range rules {
			fmt.Fprintf(w, "%s\n", r)
		}
		neighbours, _ := dump(func() ([]netlink.Neigh, error) { return h.nl.NeighList(0, family) })
		for _, n := range neighbours {
			if !n.IP.IsMulticast() && !n.IP.IsLoopback() {
				fmt.Fprintf(w, "neighbour %s dev %s mac %s state %#x\n", n.IP, names[n.LinkIndex], n.HardwareAddr, n.State)
			}
		}
	}
}

// Tail returns the last n lines of s.
func Tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
