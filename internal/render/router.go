package render

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// The formats of [Router].
const (
	BIRD  Format = "bird"  // bird.conf of BIRD 2
	FRR   Format = "frr"   // frr.conf, read by vtysh
	Junos Format = "junos" // commands in set form, only for core gateways
)

var routerFormats = []Format{BIRD, FRR, Junos}

// ParseRouterFormat reads the name of a format of [Router].
func ParseRouterFormat(s string) (Format, error) {
	if f := Format(s); slices.Contains(routerFormats, f) {
		return f, nil
	}
	return "", fmt.Errorf("format %q is not one of bird, frr, junos, etcd", s)
}

// Role is the role of a machine in a cluster. Its value is the singular of the key
// of the cluster file's list.
type Role string

// The roles.
const (
	Reflector Role = "reflector"
	Core      Role = "core"
	Node      Role = "node"
)

// words returns the role for people.
func (r Role) words() string {
	if r == Core {
		return "core gateway"
	}
	return string(r)
}

var roles = []Role{Reflector, Core, Node}

// ParseRole reads the name of a role.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(roles, r) {
		return r, nil
	}
	return "", fmt.Errorf("role %q is not one of reflector, core, node", s)
}

// RoleOf returns the role of the machine with a name. If machines of several roles
// have the name, or none has it, that is an error.
func RoleOf(c fabric.Cluster, name string) (Role, error) {
	var found []Role
	for _, r := range roles {
		if slices.Contains(names(c, r), name) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var have []string
		for _, r := range roles {
			have = append(have, names(c, r)...)
		}
		const most = 8
		if more := len(have) - most; more > 1 {
			have = append(have[:most], fmt.Sprintf("%d more", more))
		}
		return "", fmt.Errorf("%q is no reflector, core gateway or node of cluster %s; it has %s", name, c.Name, strings.Join(have, ", "))
	}
	var words []string
	for _, r := range found {
		words = append(words, string(r))
	}
	return "", fmt.Errorf("%q is the name of several (%s); say which with --role", name, strings.Join(words, ", "))
}

// names lists the machines of a role.
func names(c fabric.Cluster, r Role) []string {
	var all []string
	switch r {
	case Reflector:
		for _, m := range c.Reflectors {
			all = append(all, m.Name)
		}
	case Core:
		for _, m := range c.Core {
			all = append(all, m.Name)
		}
	case Node:
		for _, m := range c.Nodes {
			all = append(all, m.Name)
		}
	}
	return all
}

// Router returns the complete configuration of the reflector, core gateway or node
// with a name ([RoleOf]), with comments for people. See [RouterAs].
func Router(c fabric.Cluster, f Format, name string) (string, error) {
	role, err := RoleOf(c, name)
	if err != nil {
		return "", err
	}
	return RouterAs(c, f, name, role)
}

// RouterAs is [Router] for the machine with a name in a role. The cluster must have
// its defaults ([fabric.Cluster.WithDefaults]). All faults of the cluster are one
// error of several lines. An error of one line says what the format cannot express:
// a password with characters that it cannot hold, Junos for a machine that is no
// core gateway, a reflector in another AS than the nodes, or two machines that need
// a session and have no address family in common.
//
// The text contains the passwords of the sessions.
func RouterAs(c fabric.Cluster, f Format, name string, role Role) (string, error) {
	if _, err := ParseRouterFormat(string(f)); err != nil {
		return "", err
	}
	if err := validate(c); err != nil {
		return "", err
	}
	r, err := newRouter(c, f, name, role)
	if err != nil && slices.Contains(names(c, role), name) {
		err = fmt.Errorf("%s %s: %w", role.words(), name, err)
	}
	if err != nil {
		return "", err
	}
	return r.text(), nil
}

func validate(c fabric.Cluster) error {
	var errs []error
	for _, p := range c.Validate() {
		errs = append(errs, p)
	}
	for _, r := range c.Reflectors {
		if r.ASN != c.ASN {
			errs = append(errs, fmt.Errorf("reflector %s has AS number %d and the cluster %d: routes are reflected inside of one AS (RFC 4456); leave its asn out", r.Name, r.ASN, c.ASN))
		}
	}
	return errors.Join(errs...)
}

// router is the data of the templates.
type router struct {
	fabric.Cluster

	Format   Format
	Role     Role
	Name     string
	Title    string     // for people
	Address  netip.Addr // only for a reflector or a core gateway
	ASN      uint32     // its own
	RouterID netip.Addr
	RR       fabric.RR   // only for a reflector
	Node     fabric.Node // only for a node
	Families []family
	Sessions []session // to core gateways, or to reflectors
	Apart    []string  // machines with which it has no address family in common
	Others   []fabric.RR
	Ranges   []netip.Prefix // the addresses from which nodes connect to a reflector
}

// session is a session with a machine that the cluster file lists.
type session struct {
	Name           string
	Address, Local netip.Addr
	ASN            uint32
	Port           uint16 // the port to connect to
	Password       string
	GTSM, BFD      bool
	External       bool // eBGP
}

func newRouter(c fabric.Cluster, f Format, name string, role Role) (router, error) {
	r := router{Cluster: c, Format: f, Role: role, Name: name, ASN: c.ASN, Families: families(c)}
	if f == Junos && role != Core {
		return r, fmt.Errorf("junos is for core gateways; render bird or frr for a %s", role)
	}
	var err error
	switch role {
	case Reflector:
		err = r.reflector()
	case Core:
		err = r.core()
	case Node:
		err = r.node()
	default:
		_, err = ParseRole(string(role))
	}
	if err != nil {
		return r, err
	}
	for _, rr := range r.secrets() {
		if err := quotable(f, rr.Password); err != nil {
			return r, fmt.Errorf("the password of reflector %s: %w; choose another", rr.Name, err)
		}
	}
	return r, nil
}

func (r *router) reflector() (err error) {
	if r.RR, err = r.Cluster.RR(r.Name); err != nil {
		return err
	}
	r.Address, r.RouterID = r.RR.Address, fabric.RouterID(r.RR.Address, r.RR.Address)
	r.Title = fmt.Sprintf("Route reflector %s (%s)", r.Name, r.Address)
	for _, n := range r.Nodes {
		if n.Source(r.Address) == r.Address {
			return fmt.Errorf("%s is the address of node %s too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not", r.Address, n.Name)
		}
	}
	for _, g := range r.Cluster.Core {
		switch {
		case g.Address == r.Address:
			return fmt.Errorf("%s is the address of core gateway %s too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not", r.Address, g.Name)
		case g.Address.Is6() != r.Address.Is6():
			r.Apart = append(r.Apart, fmt.Sprintf("core gateway %s (%s)", g.Name, g.Address))
		default:
			r.Sessions = append(r.Sessions, session{
				Name: g.Name, Address: g.Address, Local: r.Address, ASN: g.ASN, Port: 179,
				Password: r.RR.Password, GTSM: r.RR.GTSM, BFD: g.BFD, External: g.ASN != r.ASN,
			})
		}
	}
	for _, p := range r.NodeRanges() {
		if p.Addr().Is6() == r.Address.Is6() {
			r.Ranges = append(r.Ranges, p)
		}
	}
	for _, o := range r.Reflectors {
		inside := slices.ContainsFunc(r.Ranges, func(p netip.Prefix) bool { return p.Contains(o.Address) })
		// A reflector that has a session already, as a node or as a core gateway,
		// keeps it.
		taken := slices.ContainsFunc(r.Nodes, func(n fabric.Node) bool { return n.Source(o.Address) == o.Address }) ||
			slices.ContainsFunc(r.Cluster.Core, func(g fabric.Core) bool { return g.Address == o.Address })
		if o.Name != r.Name && inside && !taken {
			r.Others = append(r.Others, o)
		}
	}
	return r.meets("core gateway", len(r.Cluster.Core))
}

func (r *router) core() error {
	g, err := r.CoreGateway(r.Name)
	if err != nil {
		return err
	}
	r.Address, r.ASN, r.RouterID = g.Address, g.ASN, fabric.RouterID(g.Address, g.Address)
	r.Title = fmt.Sprintf("Core gateway %s (%s)", r.Name, r.Address)
	for _, rr := range r.Reflectors {
		if rr.Address.Is6() != g.Address.Is6() {
			r.Apart = append(r.Apart, fmt.Sprintf("reflector %s (%s)", rr.Name, rr.Address))
			continue
		}
		s := r.to(rr, g.Address)
		s.BFD, s.External = g.BFD, g.ASN != rr.ASN
		r.Sessions = append(r.Sessions, s)
	}
	return r.meets("reflector", len(r.Reflectors))
}

func (r *router) node() (err error) {
	if r.Node, err = r.Cluster.Node(r.Name); err != nil {
		return err
	}
	r.RouterID = fabric.RouterID(r.Node.Address, r.Node.Address6)
	r.Title = fmt.Sprintf("Node %s (%s)", r.Name, cmp.Or(r.Node.Address, r.Node.Address6))
	for _, rr := range r.Reflectors {
		local := r.Node.Source(rr.Address)
		if local == rr.Address {
			return fmt.Errorf("%s is the address of reflector %s too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not", local, rr.Name)
		}
		s := r.to(rr, local)
		s.BFD = rr.BFD
		r.Sessions = append(r.Sessions, s)
	}
	return nil
}

// to returns a session with a reflector.
func (r *router) to(rr fabric.RR, local netip.Addr) session {
	return session{
		Name: rr.Name, Address: rr.Address, Local: local, ASN: rr.ASN, Port: rr.Port, Password: rr.Password, GTSM: rr.GTSM,
	}
}

// meets returns an error if the cluster has machines of a kind and the router has a
// session with none of them.
func (r *router) meets(kind string, all int) error {
	if all == 0 || len(r.Sessions) > 0 {
		return nil
	}
	return fmt.Errorf("its address %s has its family in common with no %s (%s); give both ends an address of one family",
		r.Address, kind, strings.Join(r.Apart, ", "))
}

// secrets lists the reflectors whose passwords are in the text.
func (r *router) secrets() []fabric.RR {
	if r.Role == Reflector {
		return []fabric.RR{r.RR}
	}
	return r.Reflectors
}
