package metadata

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/internal/render"
)

// Guest is what documents are made of.
type Guest struct {
	VM       fabric.VM
	UserData []byte // for the programs of the guest, if the document has it; nil: there is none
}

// Types of media.
const (
	plainText = "text/plain; charset=utf-8"
	asJSON    = "application/json"
	asYAML    = "application/yaml"
	anything  = "application/octet-stream"
)

// document makes a document. ok is false if the guest has none of the kind.
type document struct {
	media string
	make  func(g Guest, c *fabric.Cluster) (body []byte, ok bool)
}

// documents has all documents by their paths, without a slash at the end.
var documents = map[string]document{
	"":                list("meta-data", "network-config", "openstack/", "user-data", "vendor-data"),
	"/meta-data":      {asYAML, metaData},
	"/user-data":      {anything, func(g Guest, _ *fabric.Cluster) ([]byte, bool) { return g.UserData, true }}, // it must be there
	"/vendor-data":    {plainText, func(Guest, *fabric.Cluster) ([]byte, bool) { return nil, true }},           // cloud-init would ask for it again and again
	"/network-config": {asYAML, networkConfig},

	"/openstack":                          list("latest"),
	"/openstack/latest":                   list("meta_data.json", "network_data.json", "user_data", "vendor_data.json"),
	"/openstack/latest/meta_data.json":    {asJSON, openStackMetaData},
	"/openstack/latest/network_data.json": {asJSON, networkData},
	"/openstack/latest/vendor_data.json":  {asJSON, func(Guest, *fabric.Cluster) ([]byte, bool) { return []byte("{}\n"), true }},
	"/latest/meta-data":                   {plainText, func(Guest, *fabric.Cluster) ([]byte, bool) { return nil, true }}, // EC2's; the source OpenStack asks again for seconds without it

	"/openstack/latest/user_data": {anything, func(g Guest, _ *fabric.Cluster) ([]byte, bool) { return g.UserData, len(g.UserData) > 0 }},
}

func list(names ...string) document {
	return document{plainText, func(Guest, *fabric.Cluster) ([]byte, bool) { return []byte(strings.Join(names, "\n") + "\n"), true }}
}

// Document returns what a guest is told at a path. ok is false if there is nothing.
func Document(path string, g Guest, c *fabric.Cluster) (body []byte, media string, ok bool) {
	d, known := documents[strings.TrimSuffix(path, "/")]
	if !known {
		return nil, "", false
	}
	body, ok = d.make(g, c)
	return body, d.media, ok
}

// hasUserData reports whether the document at a path is the guest's user data.
func hasUserData(path string) bool {
	path = strings.TrimSuffix(path, "/")
	return path == "/user-data" || path == "/openstack/latest/user_data"
}

// instance identifies the guest for its programs, which set it up anew when it changes.
// Programs of the guest use it as the name of a directory.
func instance(vm fabric.VM) string {
	return strings.ReplaceAll(strings.Replace(string(vm.Identity()), " ", "-", 1), "/", "_")
}

// hostname returns the name that the guest is told, which may be empty.
func hostname(vm fabric.VM, c *fabric.Cluster) string {
	return autoconf.OfferOf(fabric.Port{VM: vm.Name}, c.Guests).Hostname
}

func metaData(g Guest, c *fabric.Cluster) ([]byte, bool) {
	text := "instance-id: " + quoted(instance(g.VM)) + "\n"
	if name := hostname(g.VM, c); name != "" {
		text += "local-hostname: " + quoted(name) + "\n"
	}
	return []byte(text), true
}

// quoted gives a text as a string of JSON, and so of YAML.
func quoted(s string) string { return strings.TrimSuffix(string(encoded(s)), "\n") }

func openStackMetaData(g Guest, c *fabric.Cluster) ([]byte, bool) {
	return encoded(struct {
		UUID     string `json:"uuid"` // that is the instance to cloud-init and cloudbase-init
		Name     string `json:"name"`
		Hostname string `json:"hostname,omitempty"`
	}{instance(g.VM), g.VM.Name, hostname(g.VM, c)}), true
}

// encoded encodes what always can be.
func encoded(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}

// ambiguous reports whether the guest would take one of its links for another.
func ambiguous(vm fabric.VM) bool {
	for n := range vm.NICs {
		if vm.SharesMAC(n) {
			return true
		}
	}
	return false
}

// networkConfig is version 2 of cloud-init's own form.
func networkConfig(g Guest, c *fabric.Cluster) ([]byte, bool) {
	if ambiguous(g.VM) || slices.ContainsFunc(g.VM.NICs, func(n fabric.NIC) bool {
		return n.Link == "" && (n.MAC.IsZero() || g.VM.Container || n.Kind == fabric.Veth)
	}) {
		return nil, false
	}
	text, err := render.Guest(g.VM, c.Network(), render.CloudInit, nil)
	return []byte(text), err == nil
}

// The form of network_data.json. Fields that a link or network lacks are left out.
type (
	netData struct {
		Links    []netLink    `json:"links"`
		Networks []netNetwork `json:"networks"`
		Services []netService `json:"services"`
	}
	netLink struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Name string `json:"name,omitempty"` // known to cloud-init alone
		MAC  string `json:"ethernet_mac_address,omitempty"`
		MTU  int    `json:"mtu,omitempty"`
	}
	netNetwork struct {
		ID      string     `json:"id"`
		Link    string     `json:"link"`
		Type    string     `json:"type"`
		Address string     `json:"ip_address,omitempty"`
		Mask    string     `json:"netmask,omitempty"`
		Routes  []netRoute `json:"routes,omitempty"`
	}
	netRoute struct {
		Network string `json:"network"`
		Mask    string `json:"netmask"`
		Gateway string `json:"gateway"`
	}
	netService struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	}
)

// networkData is OpenStack's form.
func networkData(g Guest, c *fabric.Cluster) ([]byte, bool) {
	if ambiguous(g.VM) {
		return nil, false
	}
	d := netData{Links: []netLink{}, Networks: []netNetwork{}, Services: []netService{}}
	routed := map[bool]bool{} // the families that have their default route, by whether they are IPv6
	for n, p := range g.VM.Ports(c) {
		o := autoconf.OfferOf(p, c.Guests)
		l := netLink{ID: fmt.Sprintf("net%d", n), Type: "phy", MTU: o.MTU}
		switch {
		case !p.NIC.MAC.IsZero():
			l.MAC = p.NIC.MAC.String()
		case p.NIC.Link != "":
			l.Name = p.NIC.Link
		default:
			return nil, false
		}
		d.Links = append(d.Links, l)
		for _, v6 := range []bool{false, true} {
			var as []netip.Addr
			for _, a := range p.NIC.Addresses {
				if a.Is6() == v6 {
					as = append(as, a)
				}
			}
			if len(as) > 0 {
				d.add(l.ID, as, o, !routed[v6])
				routed[v6] = true
			}
		}
	}
	for _, a := range c.Guests.DNS {
		if routed[a.Is6()] {
			d.Services = append(d.Services, netService{"dns", a.String()})
		}
	}
	return encoded(d), true
}

// add adds the addresses of one family of a link. first says that the family's default
// route is the link's.
func (d *netData) add(link string, as []netip.Addr, o autoconf.Offer, first bool) {
	v6 := as[0].Is6()
	family := map[bool]string{false: "ipv4", true: "ipv6"}[v6]
	one := func(kind string) {
		d.Networks = append(d.Networks, netNetwork{ID: fmt.Sprintf("network%d", len(d.Networks)), Link: link, Type: kind})
	}
	switch {
	case !first: // an answer by DHCP would make another default route
	case !v6 && o.DHCP:
		one("ipv4_dhcp")
		as, first = as[1:], false
	case v6 && o.DHCP && o.RA:
		one("ipv6_dhcpv6-stateful")
		return
	}
	for i, a := range as {
		one(family)
		n := &d.Networks[len(d.Networks)-1]
		n.Address, n.Mask = a.String(), mask(a.BitLen(), a.BitLen())
		if first && i == 0 {
			n.Routes = routes(o.Gateway.Addr(a))
		}
	}
}

// routes are the way out by a gateway that lies outside of the address's prefix. A
// link-local gateway is on every link.
func routes(gateway netip.Addr) (rs []netRoute) {
	bits := gateway.BitLen()
	none := cmp.Or(map[int]string{32: "0.0.0.0"}[bits], "::")
	if gateway.Is4() || !gateway.IsLinkLocalUnicast() {
		rs = append(rs, netRoute{gateway.String(), mask(bits, bits), none})
	}
	return append(rs, netRoute{none, mask(0, bits), gateway.String()})
}

// mask writes a prefix's length as a mask.
func mask(length, bits int) string {
	b := make([]byte, bits/8)
	for i := range length {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}
