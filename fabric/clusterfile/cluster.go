package clusterfile

import (
	"crypto/tls"
	"net/netip"

	"github.com/goccy/go-yaml/ast"

	"github.com/vmfabric/vmfabric/fabric"
)

// The longest lists that are read. The check for overlaps compares all pairs of
// pools.
const (
	maxPools = 1024
	maxItems = 4096
	// maxParts limits the prefixes, and the ranges, of one pool: each can be many
	// prefixes in the routers' filters.
	maxParts = 64
	// maxLabels limits the labels of one node.
	maxLabels = 64
	// maxMembers is more than etcd has members: seven are the most that make sense.
	maxMembers = 16
)

// The keys of the file, in the order in which errors list them.

func (d *decoder) cluster(c *fabric.Cluster) field {
	return mapping(
		key{"name", scalar(&c.Name, name)},
		key{"asn", scalar(&c.ASN, ownASN)},
		key{"community", oneOrList(&c.Communities, maxItems, community)},
		key{"gateway", gateway(&c.Gateway)},
		key{"pools", list(&c.Pools, maxPools, pool)},
		key{"routed", list(&c.Routed, maxItems, scalars(prefix))},
		key{"reflectors", list(&c.Reflectors, maxItems, d.reflector)},
		key{"core", list(&c.Core, maxItems, core)},
		key{"nodes", list(&c.Nodes, maxItems, func(n *fabric.Node) field { return node(c, n) })},
		key{"timers", timers(&c.Timers)},
		key{"underlay", list(&c.Underlay, maxItems, scalars(prefix))},
		key{"max_prefixes", scalar(&c.MaxPrefixes, count)},
		key{"east_west", scalar(&c.EastWest, eastWest)},
		key{"speaker", scalar(&c.Speaker, program)},
		key{"resolver", scalar(&c.Resolver, program)},
		key{"observers", list(&c.Observers, maxItems, scalars(program))},
		key{"key_file", scalar(&c.Key, d.keyFile)},
		key{"agent_port", scalar(&c.AgentPort, agentPort)},
		key{"registry", registry(&c.Registry)},
		key{"moves", moves(&c.Moves)},
		key{"guests", guests(&c.Guests)},
		key{"accounting", scalar(&c.Accounting, boolean)},
		key{"metrics", scalar(&c.Metrics, addrPort)},
	)
}

func registry(r *fabric.RegistryConfig) field {
	return func(d *decoder, path string, v ast.Node) {
		mapping(key{"etcd", func(d *decoder, path string, v ast.Node) {
			r.Etcd = &fabric.EtcdConfig{}
			etcd(r.Etcd)(d, path, v)
		}})(d, path, v)
		if r.Etcd == nil && !d.follows(path) {
			d.fail(path, "empty; say under etcd where the cluster's registry is, or leave the key out")
		}
	}
}

func etcd(e *fabric.EtcdConfig) field {
	return func(d *decoder, path string, v ast.Node) {
		mapping(
			key{"endpoints", list(&e.Endpoints, maxMembers, scalars(endpoint))},
			key{"ca_file", scalar(&e.CA, d.certificates)},
			key{"cert_file", scalar(&e.Cert, d.certificates)},
			key{"key_file", scalar(&e.Key, d.privateKey)},
			key{"prefix", scalar(&e.Prefix, prefixOfKeys)},
		)(d, path, v)
		if e.Cert == "" || e.Key == "" || d.follows(path) {
			return
		}
		if _, err := tls.X509KeyPair([]byte(e.Cert), []byte(e.Key)); err != nil {
			d.fail(child(path, "cert_file"), "it does not fit the key of key_file (%v); name the two files that were made together", err)
		}
	}
}

func guests(g *fabric.Guests) field {
	return mapping(
		key{"reach", list(&g.Reach, maxItems, scalars(prefix))},
		key{"node_ports", list(&g.NodePorts, maxItems, scalars(service))},
		key{"dhcp", scalar(&g.NoDHCP, off)},
		key{"ra", scalar(&g.NoRA, off)},
		key{"metadata", scalar(&g.Metadata, boolean)},
		key{"isolate", scalar(&g.Isolate, boolean)},
		key{"dns", list(&g.DNS, maxItems, scalars(addr))},
		key{"search", list(&g.Search, maxItems, scalars(domain))},
		key{"ntp", list(&g.NTP, maxItems, scalars(addr))},
		key{"mtu", scalar(&g.MTU, mtu)},
	)
}

func moves(m *fabric.Moves) field {
	return mapping(
		key{"packets_per_second", scalar(&m.Rate, rate)},
		key{"pause", scalar(&m.Pause, duration)},
	)
}

func gateway(g *fabric.Gateway) field {
	return mapping(
		key{"ipv4", scalar(&g.IPv4, addr)},
		key{"ipv6", scalar(&g.IPv6, addr)},
		key{"mac", scalar(&g.MAC, mac)},
	)
}

func pool(p *fabric.Pool) field {
	return mapping(
		key{"name", scalar(&p.Name, name)},
		key{"prefix", scalar(&p.Prefix, prefix)},
		key{"prefixes", list(&p.Prefixes, maxParts, scalars(prefix))},
		key{"ranges", list(&p.Ranges, maxParts, scalars(addressRange))},
		key{"per_guest", scalar(&p.PerGuest, prefixLength)},
		key{"guest_address", scalar(&p.NoAddress, off)},
		key{"exclude", list(&p.Exclude, maxItems, scalars(addrOrPrefix))},
		key{"reserve", list(&p.Reserve, maxItems, reservation)},
		key{"quarantine", scalar(&p.Quarantine, duration)},
		key{"nodes", list(&p.Nodes, maxItems, scalars(name))},
		key{"node_labels", list(&p.NodeLabels, maxItems, scalars(name))},
	)
}

func reservation(r *fabric.Reservation) field {
	return mapping(
		key{"address", scalar(&r.Prefix, addrOrPrefix)},
		key{"note", scalar(&r.Note, note)},
	)
}

func (d *decoder) reflector(r *fabric.RR) field {
	return mapping(
		key{"name", scalar(&r.Name, name)},
		key{"address", scalar(&r.Address, addr)},
		key{"asn", scalar(&r.ASN, peerASN)},
		key{"port", scalar(&r.Port, port)},
		key{"password_file", scalar(&r.Password, d.password)},
		key{"gtsm", scalar(&r.GTSM, boolean)},
		key{"bfd", scalar(&r.BFD, boolean)},
	)
}

func core(g *fabric.Core) field {
	return mapping(
		key{"name", scalar(&g.Name, name)},
		key{"address", scalar(&g.Address, addr)},
		key{"asn", scalar(&g.ASN, peerASN)},
		key{"bfd", scalar(&g.BFD, boolean)},
	)
}

func timers(t *fabric.Timers) field {
	return mapping(
		key{"hold", scalar(&t.Hold, duration)},
		key{"connect_retry", scalar(&t.ConnectRetry, duration)},
		key{"restart", scalar(&t.Restart, duration)},
		key{"long_lived", scalar(&t.LongLived, duration)},
	)
}

// node also reads an IPv6 address under the key address, for a node that has no
// other.
func node(c *fabric.Cluster, n *fabric.Node) field {
	var labels []string
	fields := mapping(
		key{"name", scalar(&n.Name, name)},
		key{"address", scalar(&n.Address, addr)},
		key{"address6", scalar(&n.Address6, addr6)},
		key{"labels", list(&labels, maxLabels, scalars(name))},
	)
	return func(d *decoder, path string, v ast.Node) {
		fields(d, path, v)
		if len(labels) > 0 {
			if c.Labels == nil {
				c.Labels = map[string][]string{}
			}
			c.Labels[n.Name] = labels
		}
		if !n.Address.Is6() {
			return
		}
		a, at := n.Address, child(path, "address")
		n.Address = netip.Addr{}
		if _, both := d.places[child(path, "address6")]; both {
			d.fail(at, "%s is IPv6, and the node has an address6; give its IPv4 address here, or remove one of the two", a)
			return
		}
		n.Address6 = a
		d.places[child(path, "address6")] = d.places[at]
	}
}
