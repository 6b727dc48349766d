package lxd

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

const defaultProject = "default"

// key names an instance: names are unique within a project.
type key struct{ project, name string }

// instance is an instance as the daemon describes it. Config and Devices are its
// own; the expanded ones include those of its profiles.
type instance struct {
	Name, Project, Location, Type string

	Code            int `json:"status_code"`
	Config          map[string]string
	Devices         map[string]device
	ExpandedConfig  map[string]string `json:"expanded_config"`
	ExpandedDevices map[string]device `json:"expanded_devices"`
	Profiles        []string
}

type device map[string]string

// bare returns a guest of which only the name and the UUID are known.
func (d dialect) bare(i instance) fabric.VM {
	return fabric.VM{Name: i.Name, UUID: i.uuid(), Origin: d.name}
}

func (i instance) key() key { return key{cmp.Or(i.Project, defaultProject), i.Name} }

// uuid identifies the instance wherever it is moved to. LXD 4.0 has no UUIDs, so
// there it is the project and the name.
func (i instance) uuid() string {
	k := i.key()
	return cmp.Or(i.ExpandedConfig[uuidKey], k.project+"/"+k.name)
}

// uuidKey is LXD's own key of an instance's UUID.
const uuidKey = "volatile.uuid"

// virtual reports whether it is a virtual machine, with a kernel of its own.
func (i instance) virtual() bool { return i.Type == "virtual-machine" }

// unreadable reports whether the daemon knew nothing of the instance but its name;
// any other has at least a volatile key in its configuration.
func (i instance) unreadable() bool { return i.Code == codeError && len(i.ExpandedConfig) == 0 }

// guest returns the guest that an instance is. To be none of the fabric's is no
// error. The error of one of the fabric's says how to correct it.
func (d dialect) guest(i instance) (vm fabric.VM, ours bool, err error) {
	nics, err := d.nics(i)
	if err != nil || len(nics) == 0 {
		return vm, false, err
	}
	vm = fabric.VM{Name: i.Name, UUID: i.uuid(), Origin: d.name, NICs: nics, Container: !i.virtual()}
	if err := d.switches(i, &vm); err != nil {
		return vm, false, err
	}
	if vm.Firewall, err = d.firewall(i); err != nil {
		return vm, false, err
	}
	if err := vm.Validate(); err != nil {
		return vm, false, fmt.Errorf("%w; see %s", err, d.command(i, "config", "show", i.Name, "--expanded"))
	}
	taken := map[string]bool{}
	for n := range nics {
		if name, found := d.plug(i, n); found {
			taken[name] = true
		}
	}
	for n := range nics {
		name, found := d.plug(i, n)
		if !found {
			return vm, false, d.unplugged(i, n, taken)
		}
		if err := d.plugged(i, n, name, &nics[n]); err != nil {
			return vm, false, err
		}
	}
	return vm, true, nil
}

// Keys of an instance after the fabric's prefix. The number of a NIC follows nicKey.
const (
	nicKey  = "net"
	dhcpKey = "dhcp"
	raKey   = "ra"

	metadataKey = "metadata"
	isolateKey  = "isolate"
	firewallKey = "firewall." // before ingress, egress and stateful
)

// switches reads what the instance turns off, and whether it is isolated.
func (d dialect) switches(i instance, vm *fabric.VM) error {
	off := map[string]*bool{dhcpKey: &vm.NoDHCP, raKey: &vm.NoRA, metadataKey: &vm.NoMetadata}
	for _, name := range slices.Sorted(maps.Keys(off)) { // of two wrong ones the same is named each time
		on, given, err := d.boolean(i, name)
		if err != nil {
			return err
		}
		*off[name] = given && !on
	}
	var err error
	vm.Isolated, _, err = d.boolean(i, isolateKey)
	return err
}

// boolean reads a key that is true or false.
func (d dialect) boolean(i instance, name string) (on, given bool, err error) {
	k := d.keys + name
	value, given := i.ExpandedConfig[k]
	if given && value != "true" && value != "false" {
		return false, given, fmt.Errorf("%s is %.20q, and it takes true or false; %s", k, value, d.command(i, "config", "set", i.Name, k+"=false"))
	}
	return value == "true", given, nil
}

// firewall reads the instance's firewall; nil: it has none. The keys of the two directions
// have rules as [fabric.ParseFilter] reads them.
func (d dialect) firewall(i instance) (*fabric.Firewall, error) {
	w, given := fabric.Firewall{}, false
	for _, k := range slices.Sorted(maps.Keys(i.ExpandedConfig)) {
		name, ours := strings.CutPrefix(k, d.keys+firewallKey)
		if !ours {
			continue
		}
		var err error
		switch direction := fabric.Direction(name); direction {
		case fabric.Ingress:
			w.Ingress, err = fabric.ParseFilter(i.ExpandedConfig[k], direction)
		case fabric.Egress:
			w.Egress, err = fabric.ParseFilter(i.ExpandedConfig[k], direction)
		case "stateful":
			if w.Stateful, _, err = d.boolean(i, firewallKey+name); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%s is not a key of the fabric, which has %[2]singress, %[2]segress and %[2]sstateful; %s", k, d.keys+firewallKey, d.unset(i, k))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w; %s", k, err, d.command(i, "config", "set", i.Name, k+"=..."))
		}
		given = true
	}
	if !given {
		return nil, nil
	}
	return &w, nil // the caller validates it with the guest
}

// nics reads the addresses, pools and routes of the instance's NICs.
func (d dialect) nics(i instance) ([]fabric.NIC, error) {
	byNumber := map[int]*fabric.NIC{}
	for _, k := range slices.Sorted(maps.Keys(i.ExpandedConfig)) {
		rest, ours := strings.CutPrefix(k, d.keys+nicKey)
		if !ours {
			continue
		}
		digits, what, _ := strings.Cut(rest, ".")
		n, err := strconv.Atoi(digits)
		if err != nil || n < 0 || n >= fabric.MaxNICs || strconv.Itoa(n) != digits || what != "addresses" && what != "routes" {
			return nil, fmt.Errorf("%s is not a key of the fabric, which has %[2]s<N>.addresses and %[2]s<N>.routes; %s", k, d.keys+nicKey, d.unset(i, k))
		}
		if byNumber[n] == nil {
			byNumber[n] = new(fabric.NIC)
		}
		if err := read(byNumber[n], what, i.ExpandedConfig[k]); err != nil {
			return nil, fmt.Errorf("%s: %w; %s", k, err, d.command(i, "config", "set", i.Name, k+"=..."))
		}
	}
	nics := make([]fabric.NIC, len(byNumber))
	for n := range nics {
		nic := byNumber[n]
		if nic == nil {
			return nil, fmt.Errorf("NIC %d has no addresses, and one with a higher number has; %s",
				n, d.command(i, "config", "set", i.Name, fmt.Sprintf("%s%s%d.addresses=...", d.keys, nicKey, n)))
		}
		if len(nic.Addresses)+len(nic.Pools) == 0 {
			return nil, fmt.Errorf("NIC %d has no address; %s", n, d.command(i, "config", "set", i.Name, fmt.Sprintf("%s%s%d.addresses=...", d.keys, nicKey, n)))
		}
		nics[n] = *nic
	}
	return nics, nil
}

// poolPrefix is before the name of a pool in a list of addresses. [fabric.AutoPool]
// stands there without it.
const poolPrefix = "pool:"

// read reads a key's value, a list with commas.
func read(nic *fabric.NIC, what, value string) error {
	for word := range strings.SplitSeq(value, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if what == "routes" {
			p, err := parsePrefix(word)
			if err != nil {
				return err
			}
			nic.Routes = append(nic.Routes, p)
			continue
		}
		pool, asks := strings.CutPrefix(word, poolPrefix)
		if asks = asks || word == fabric.AutoPool; asks {
			if fabric.ValidatePool(pool) != nil {
				return fmt.Errorf("%.60q names no pool, write one such as %spublic4, or %s", word, poolPrefix, fabric.AutoPool)
			}
			nic.Pools = append(nic.Pools, pool)
			continue
		}
		a, err := parseAddr(word)
		if err != nil {
			return err
		}
		nic.Addresses = append(nic.Addresses, a)
	}
	return nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Errorf("%.60q is a prefix, write the address alone", s)
	case err != nil:
		return a, fmt.Errorf("%.60q is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or %s for one of the pools", s, fabric.AutoPool)
	case a.Zone() != "":
		return a, fmt.Errorf("%.60q has a zone, which means nothing outside one host, write an address of a pool", s)
	case a.Is4In6():
		return a, fmt.Errorf("%q is an IPv4 address written as IPv6, write %s", s, a.Unmap())
	}
	return a, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch a, none := netip.ParseAddr(s); {
	case none == nil && a.Zone() == "":
		return p, fmt.Errorf("%q has no length, write %s/%d", s, s, a.BitLen())
	case err != nil:
		return p, fmt.Errorf("%.60q is not a prefix, write one such as 198.51.100.0/29 or 2001:db8:200::/56", s)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is an IPv4 prefix written as IPv6, write it as one such as 198.51.100.0/29", s)
	}
	return p, nil
}

// plug finds the device of the n-th NIC: the one whose host side is its port.
func (d dialect) plug(i instance, n int) (name string, found bool) {
	port, peer := fabric.PortName(i.Name, n), fabric.PeerName(i.Name, n)
	for _, name := range slices.Sorted(maps.Keys(i.ExpandedDevices)) {
		switch dev := i.ExpandedDevices[name]; {
		case dev["type"] != "nic":
		case dev["nictype"] == "p2p" && dev["host_name"] == port, dev["nictype"] == "physical" && dev["parent"] == peer:
			return name, true
		}
	}
	return "", false
}

// plugged completes a NIC with the settings of its device.
func (d dialect) plugged(i instance, n int, name string, nic *fabric.NIC) error {
	dev := i.ExpandedDevices[name]
	nic.Kind = fabric.Adopt
	if dev["nictype"] == "physical" {
		nic.Kind = fabric.Veth
		if i.virtual() {
			return fmt.Errorf("NIC device %s is physical, which gives a virtual machine a device of the bus and not a link; %s", name, d.replace(i, n, name))
		}
	}
	// Without hwaddr LXD chooses one for a p2p device, once, and keeps it in this
	// key.
	nic.MAC, _ = fabric.ParseMAC(cmp.Or(dev["hwaddr"], i.ExpandedConfig["volatile."+name+".hwaddr"]))
	nic.Link = cmp.Or(dev["name"], i.ExpandedConfig["volatile."+name+".name"])
	if mtu := dev["mtu"]; mtu != "" {
		value, err := strconv.Atoi(mtu)
		if err != nil || !fabric.ValidMTU(value) {
			return fmt.Errorf("NIC device %s has the MTU %.20q, and IPv6 needs %d, a link takes at most %d; %s", name, mtu, fabric.MinMTU, fabric.MaxMTU, d.set(i, name, "mtu=1500"))
		}
		nic.MTU = value
	}
	return nil
}
