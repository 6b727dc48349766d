package routers

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"text/template"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// BGP has the settings that both ends of the lab's sessions share. The zero value
// of each field is a good one.
type BGP struct {
	ASN       uint32        // 64512
	Password  string        // TCP MD5 key (RFC 2385); none when empty
	BFD       bool          // single hop, 3 x 100 ms
	Hold      time.Duration // 9 s, keepalives every third of it
	Restart   time.Duration // graceful restart time (RFC 4724), 30 s
	LongLived time.Duration // long-lived stale time (RFC 9494) of the reflector and the core gateway; off when zero
}

func (b BGP) withDefaults() BGP {
	b.ASN = cmp.Or(b.ASN, 64512)
	b.Hold = cmp.Or(b.Hold, 9*time.Second)
	b.Restart = cmp.Or(b.Restart, 30*time.Second)
	return b
}

// BGPOf returns the settings that a cluster's nodes and reflectors share, with the
// password and BFD of its first reflector.
func BGPOf(c fabric.Cluster) BGP {
	b := BGP{ASN: c.ASN, Hold: c.Timers.Hold, Restart: c.Timers.Restart}
	if len(c.Reflectors) > 0 {
		b.Password, b.BFD = c.Reflectors[0].Password, c.Reflectors[0].BFD
	}
	return b
}

// Reflector is the configuration of a route reflector: every host on the underlay
// is its client, by either family.
type Reflector struct {
	BGP
	RouterID  netip.Addr     // its IPv4 address
	ClusterID netip.Addr     // RFC 4456; the same on both reflectors; 10.10.0.100 when unset
	Clients   []netip.Prefix // where clients may call from; the underlay when empty
	// Cores are the core gateways. They are clients without BFD, which would cut
	// short the graceful restart between them and a reflector that ended.
	Cores []netip.Addr
}

func (r Reflector) withDefaults() Reflector {
	r.BGP = r.BGP.withDefaults()
	r.ClusterID = cmp.Or(r.ClusterID, core.Underlay4(100))
	if len(r.Clients) == 0 {
		r.Clients = []netip.Prefix{core.UnderlayPrefix4, core.UnderlayPrefix6}
	}
	return r
}

// CoreGateway is the configuration of a core gateway: it learns from the
// reflectors into its kernel, next hops on the underlay.
type CoreGateway struct {
	BGP
	RouterID   netip.Addr
	Reflectors []netip.Addr
}

func (c CoreGateway) withDefaults() CoreGateway {
	c.BGP = c.BGP.withDefaults()
	c.RouterID = cmp.Or(c.RouterID, core.CoreAddr4)
	return c
}

// Announcer is the configuration of a speaker that announces routes as a node does,
// with itself as next hop.
type Announcer struct {
	BGP
	RouterID    netip.Addr
	Reflectors  []netip.Addr
	Routes      []netip.Prefix
	Communities []fabric.Community
	LocalPref   uint32       // 100 when zero
	NextHops    []netip.Addr // in place of itself, at most one of each family
}

// Hop returns the next hop of a family from NextHops, or nil.
func (a Announcer) Hop(family string) *netip.Addr {
	for _, h := range a.NextHops {
		if h.Is4() == (family == "ipv4") {
			return &h
		}
	}
	return nil
}

func (a Announcer) withDefaults() Announcer {
	a.BGP = a.BGP.withDefaults()
	a.LocalPref = cmp.Or(a.LocalPref, 100)
	return a
}

var confFuncs = template.FuncMap{
	"seconds":  func(d time.Duration) int { return int(d / time.Second) },
	"third":    func(d time.Duration) int { return int(d / time.Second / 3) },
	"families": func() []string { return []string{"ipv4", "ipv6"} },
	"groups": func(r Reflector) []string {
		if len(r.Cores) == 0 {
			return []string{"clients"}
		}
		return []string{"clients", "cores"}
	},
	"is4": func(p netip.Prefix) bool { return p.Addr().Is4() },
	"addCommunity": func(c fabric.Community) string {
		if c.Large {
			return fmt.Sprintf("bgp_large_community.add((%d, %d, %d));", c.A, c.B, c.C)
		}
		return fmt.Sprintf("bgp_community.add((%d, %d));", c.A, c.B)
	},
}

func render(t *template.Template, v any) string {
	var b strings.Builder
	if err := t.Execute(&b, v); err != nil {
		panic(err) // the templates and their types are both in this package
	}
	return b.String()
}

func confTemplate(name, text string) *template.Template {
	return template.Must(template.New(name).Funcs(confFuncs).Parse(text))
}

// BGPRoute is a BGP route in a router's table.
type BGPRoute struct {
	Prefix      netip.Prefix
	From        netip.Addr // the neighbour that sent it
	NextHop     netip.Addr
	Origin      string // "IGP", "EGP", "Incomplete"
	LocalPref   uint32
	Communities []fabric.Community // large ones last
	Best        bool
}
