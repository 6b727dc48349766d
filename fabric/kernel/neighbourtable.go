package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/plural"
)

// neighbourTable is the kernel's table of the neighbours of one family. The whole
// host shares it: when it is full, no program finds a new neighbour.
type neighbourTable struct {
	family  string
	name    string // of its sysctls and counters
	counter string
	limit   int // gc_thresh3
	entries int // entries that the limit counts
}

// Each guest needs some entries, and more for a time while it uses many sources.
const (
	neighboursOfNode, neighboursOfPort = 512, 16
	nearlyFull                         = 80 // percent
)

// fault returns the fault of the table on a node with so many ports, or "".
func (t neighbourTable) fault(ports int) string {
	need := neighboursOfNode + neighboursOfPort*ports
	wayOut := fmt.Sprintf("raise net.%s.neigh.default.gc_thresh1, 2 and 3 as packaging's 90-vmfabric.conf has them (sysctl -p /etc/sysctl.d/90-vmfabric.conf)", t.name)
	switch {
	case t.entries*100 >= t.limit*nearlyFull:
		return fmt.Sprintf("the %s neighbour table has %d of at most %d entries, guests and the node lose their neighbours when it is full; %s, and see who fills it (ip -s neigh)", t.family, t.entries, t.limit, wayOut)
	case t.limit < need:
		return fmt.Sprintf("the %s neighbour table holds %d entries, %s may need %d; %s", t.family, t.limit, plural.Of(ports, "port", "ports"), need, wayOut)
	}
	return ""
}

// weighNeighbours reports neighbour tables that are small or nearly full.
func (v *verifier) weighNeighbours(all []neighbour, ports int) {
	for _, t := range readNeighbourTables("/") {
		// The limit does not count permanent entries (since Linux 5.0).
		for _, n := range all {
			if n.addr.Is4() == (t.name == "ipv4") && n.state&unix.NUD_PERMANENT != 0 {
				t.entries--
			}
		}
		v.conditions.set("neighbours "+t.name, t.fault(ports))
	}
}

// readNeighbourTables reads the tables from the proc file system below a root directory.
// Only the initial network namespace shows their limits.
func readNeighbourTables(root string) (tables []neighbourTable) {
	for _, t := range []neighbourTable{
		{family: "IPv4", name: "ipv4", counter: "arp_cache"},
		{family: "IPv6", name: "ipv6", counter: "ndisc_cache"},
	} {
		limit, err := os.ReadFile(filepath.Join(root, sysctlRoot, t.name, "neigh/default/gc_thresh3"))
		if err != nil {
			continue
		}
		if t.limit, err = strconv.Atoi(strings.TrimSpace(string(limit))); err != nil {
			continue
		}
		counted, err := os.ReadFile(filepath.Join(root, "/proc/net/stat", t.counter))
		if err != nil {
			continue
		}
		if t.entries, err = parseEntries(string(counted)); err == nil {
			tables = append(tables, t)
		}
	}
	return tables
}

// NeighbourFaults lists the faults of the neighbour tables of a node with so many
// ports, as the proc file system below a root directory shows them.
func NeighbourFaults(root string, ports int) (faults []string) {
	for _, t := range readNeighbourTables(root) {
		if text := t.fault(ports); text != "" {
			faults = append(faults, text)
		}
	}
	return faults
}

// parseEntries reads how many entries a table has from its counters
// (/proc/net/stat): a line of names and one for each processor, in hexadecimal.
func parseEntries(text string) (int, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 2 || !strings.HasPrefix(lines[0], "entries ") {
		return 0, fmt.Errorf("no counters of a neighbour table")
	}
	first, _, _ := strings.Cut(lines[1], " ")
	n, err := strconv.ParseUint(first, 16, 31)
	return int(n), err
}
