// Package initial makes the first cluster file of a cluster, from what the machine
// and the operator say. It is plain values and text: who calls it reads the machine
// and writes the files.
package initial

import (
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"text/template"

	"github.com/vmfabric/vmfabric/fabric"
)

// Interface is an interface of the machine, with the addresses that it has.
type Interface struct {
	Name      string
	Addresses []netip.Addr
}

// Machine is a machine of the cluster as the file names it.
type Machine struct {
	Name    string
	Address netip.Addr
}

// ParseMachine parses NAME=ADDRESS.
func ParseMachine(s string) (Machine, error) {
	name, address, ok := strings.Cut(s, "=")
	a, err := netip.ParseAddr(address)
	if !ok || name == "" || err != nil {
		return Machine{}, fmt.Errorf("%q is not a name and an address; write one such as rr1=10.10.0.11", s)
	}
	return Machine{Name: name, Address: a.Unmap()}, nil
}

// Cluster is what a first cluster file has. What is empty is in the file as a
// comment, to be filled in.
type Cluster struct {
	Name       string
	ASN        uint32
	Pools      []netip.Prefix
	Reflectors []Machine
	Core       []Machine
	DNS        []netip.Addr
	Node       string
	Address    netip.Addr // of the node, IPv4 unless the machine has none
	Address6   netip.Addr // the next hop of its guests' IPv6 routes; may be invalid
}

// Missing lists the keys that the operator has still to fill in, in the order of
// the file.
func (c Cluster) Missing() (keys []string) {
	for _, k := range []struct {
		name string
		has  int
	}{{"pools", len(c.Pools)}, {"reflectors", len(c.Reflectors)}} {
		if k.has == 0 {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// Community is the community on every route of a guest: a large one (RFC 8092) where
// the AS number does not fit in a half of another.
func (c Cluster) Community() string {
	if c.ASN > math.MaxUint16 {
		return fmt.Sprintf("%d:1:100", c.ASN)
	}
	return fmt.Sprintf("%d:100", c.ASN)
}

// Fabric gives the cluster, as far as it is known, with the defaults of what the file does
// not say.
func (c Cluster) Fabric() fabric.Cluster {
	is := fabric.Cluster{Name: c.Name, ASN: c.ASN, Nodes: []fabric.Node{{Name: c.Node, Address: c.Address, Address6: c.Address6}}}
	if c.Address.Is6() {
		is.Nodes[0].Address, is.Nodes[0].Address6 = netip.Addr{}, c.Address
	}
	for i, p := range c.Pools {
		is.Pools = append(is.Pools, fabric.Pool{Name: fmt.Sprintf("pool%d", i), Prefix: p})
	}
	for _, m := range c.Reflectors {
		is.Reflectors = append(is.Reflectors, fabric.RR{Name: m.Name, Address: m.Address})
	}
	for _, m := range c.Core {
		is.Core = append(is.Core, fabric.Core{Name: m.Name, Address: m.Address})
	}
	is.Guests.DNS = c.DNS
	return is.WithDefaults()
}

//go:embed cluster.yaml.tmpl
var text string

var file = template.Must(template.New("cluster.yaml").Funcs(template.FuncMap{
	"pool": func(p netip.Prefix, n int) string {
		family := "4"
		if p.Addr().Is6() {
			family = "6"
		}
		if n > 0 {
			return fmt.Sprintf("public%s-%d", family, n+1)
		}
		return "public" + family
	},
	"earlier": func(ps []netip.Prefix, i int) (n int) {
		for _, p := range ps[:i] {
			if p.Addr().Is4() == ps[i].Addr().Is4() {
				n++
			}
		}
		return n
	},
}).Parse(text))

// File returns the cluster file.
func (c Cluster) File() (string, error) {
	var b strings.Builder
	if err := file.Execute(&b, c); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Underlay picks the node's addresses of the underlay. They are of the interface by
// which the machine reaches the first reflector, whose address there is toReflector,
// if the operator named one. Otherwise they are of the one interface with a private
// address (RFC 1918, RFC 4193), or of the one interface there is. The error names
// the candidates if there are several.
func Underlay(interfaces []Interface, toReflector netip.Addr) (address, address6 netip.Addr, err error) {
	interfaces = slices.DeleteFunc(slices.Clone(interfaces), func(i Interface) bool { return !slices.ContainsFunc(i.Addresses, usable) })
	private := slices.DeleteFunc(slices.Clone(interfaces), func(i Interface) bool {
		return !slices.ContainsFunc(i.Addresses, netip.Addr.IsPrivate)
	})
	pick := private
	switch {
	case toReflector.IsValid():
		pick = slices.DeleteFunc(slices.Clone(interfaces), func(i Interface) bool { return !slices.Contains(i.Addresses, toReflector) })
	case len(private) == 0:
		pick = interfaces
	}
	switch {
	case len(pick) == 0:
		return address, address6, errors.New("no interface has an address that other nodes could reach; set up the underlay first, or give --address")
	case len(pick) > 1:
		return address, address6, fmt.Errorf("the underlay can be that of %s; name the node's address on it with --address", candidates(pick))
	}
	address, address6 = addressesOf(pick[0], toReflector)
	return address, address6, nil
}

// addressesOf returns the addresses of the node on an interface: the IPv4 one that
// leads to the reflector or else the first, and the first IPv6 one.
func addressesOf(i Interface, preferred netip.Addr) (address, address6 netip.Addr) {
	for _, a := range slices.DeleteFunc(slices.Clone(i.Addresses), func(a netip.Addr) bool { return !usable(a) }) {
		switch {
		case a.Is4() && (!address.IsValid() || a == preferred):
			address = a
		case a.Is6() && (!address6.IsValid() || a == preferred):
			address6 = a
		}
	}
	if !address.IsValid() {
		address = address6
	}
	return address, address6
}

func usable(a netip.Addr) bool { return a.IsGlobalUnicast() }

func candidates(interfaces []Interface) string {
	var all []string
	for _, i := range interfaces {
		a, _ := addressesOf(i, netip.Addr{})
		all = append(all, fmt.Sprintf("%s (%s)", i.Name, a))
	}
	return strings.Join(all[:len(all)-1], ", ") + " or " + all[len(all)-1]
}
