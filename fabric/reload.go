package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Reload is what a changed cluster file means for an agent that runs.
type Reload struct {
	// Cluster is what the agent goes by from now on: the file, with what waits as it
	// was.
	Cluster Cluster
	Applied []string // what changes now, one line for each key of the file
	Waiting []string // what stays as it was until the agent is restarted, likewise
}

// Reload compares the cluster that an agent goes by with what its file says now. next
// has its defaults. The error says why next is good for no agent of this node, or why the
// part of it that could change now would not be; nothing is to change then.
func (c *Cluster) Reload(next Cluster, node string) (Reload, error) {
	if _, err := next.Node(node); err != nil {
		return Reload{}, err
	}
	// Who is in the cluster's own AS stays in it: that is one change, not one of each.
	next.Reflectors, next.Core = slices.Clone(next.Reflectors), slices.Clone(next.Core)
	for i, rr := range next.Reflectors {
		if rr.ASN == next.ASN {
			next.Reflectors[i].ASN = c.ASN
		}
	}
	for i, g := range next.Core {
		if g.ASN == next.ASN {
			next.Core[i].ASN = c.ASN
		}
	}
	r := Reload{Cluster: next}
	for _, s := range settings {
		now, waits := s.compare(c, &next, node)
		s.merge(&r.Cluster, c, node)
		if len(now) > 0 {
			r.Applied = append(r.Applied, s.key+": "+strings.Join(now, ", "))
		}
		if len(waits) > 0 {
			r.Waiting = append(r.Waiting, fmt.Sprintf("%s: %s; it is as it was until the agent is restarted", s.key, strings.Join(waits, ", ")))
		}
	}
	if ps := r.Cluster.Validate(); len(ps) > 0 {
		errs := make([]error, len(ps))
		for i, p := range ps {
			errs[i] = p
		}
		return Reload{}, fmt.Errorf("restart the agent for it; until then %s would stay as it was, and: %w", strings.Join(keysOf(r.Waiting), ", "), errors.Join(errs...))
	}
	return r, nil
}

// keysOf gives the keys with which lines begin.
func keysOf(lines []string) []string {
	keys := make([]string, len(lines))
	for i, l := range lines {
		keys[i], _, _ = strings.Cut(l, ":")
	}
	return keys
}

// setting is a key of the cluster file, as far as a running agent is concerned.
type setting struct {
	key string
	// compare says what of it changes now, and what waits for a restart.
	compare func(was, is *Cluster, node string) (now, waits []string)
	// merge puts back what waits.
	merge func(into, was *Cluster, node string)
}

// settings are all keys of the cluster file. What decides on which sockets the agent
// listens, which programs it runs, what its sessions are opened with, and what all ports
// have in common waits for a restart.
var settings = []setting{
	waits("name", func(c *Cluster) *string { return &c.Name }),
	waits("asn", func(c *Cluster) *uint32 { return &c.ASN }),
	waits("community", func(c *Cluster) *[]Community { return &c.Communities }),
	waits("gateway", func(c *Cluster) *Gateway { return &c.Gateway }),
	things("pools", func(c *Cluster) []Pool { return c.Pools }, func(p Pool) string { return p.Name }),
	changes("routed", func(c *Cluster) *[]netip.Prefix { return &c.Routed }),
	{"reflectors", compareReflectors, mergeReflectors},
	things("core", func(c *Cluster) []Core { return c.Core }, func(g Core) string { return g.Name }),
	{"nodes", compareNodes, mergeNodes},
	changes("nodes[].labels", func(c *Cluster) *map[string][]string { return &c.Labels }),
	waits("timers", func(c *Cluster) *Timers { return &c.Timers }),
	changes("underlay", func(c *Cluster) *[]netip.Prefix { return &c.Underlay }),
	changes("max_prefixes", func(c *Cluster) *int { return &c.MaxPrefixes }),
	waits("east_west", func(c *Cluster) *bool { return &c.EastWest }),
	waits("speaker", func(c *Cluster) *string { return &c.Speaker }),
	waits("resolver", func(c *Cluster) *string { return &c.Resolver }),
	waits("observers", func(c *Cluster) *[]string { return &c.Observers }),
	waits("key_file", func(c *Cluster) *string { return &c.Key }),
	waits("agent_port", func(c *Cluster) *uint16 { return &c.AgentPort }),
	waits("registry", func(c *Cluster) *RegistryConfig { return &c.Registry }),
	changes("moves", func(c *Cluster) *Moves { return &c.Moves }),
	changes("guests.reach", func(c *Cluster) *[]netip.Prefix { return &c.Guests.Reach }),
	changes("guests.node_ports", func(c *Cluster) *[]Service { return &c.Guests.NodePorts }),
	changes("guests.dhcp", func(c *Cluster) *bool { return &c.Guests.NoDHCP }),
	changes("guests.ra", func(c *Cluster) *bool { return &c.Guests.NoRA }),
	changes("guests.dns", func(c *Cluster) *[]netip.Addr { return &c.Guests.DNS }),
	changes("guests.search", func(c *Cluster) *[]string { return &c.Guests.Search }),
	changes("guests.ntp", func(c *Cluster) *[]netip.Addr { return &c.Guests.NTP }),
	changes("guests.mtu", func(c *Cluster) *int { return &c.Guests.MTU }),
	waits("guests.lifetimes", func(c *Cluster) *Lifetimes { return &c.Guests.Lifetimes }),
	changes("guests.isolate", func(c *Cluster) *bool { return &c.Guests.Isolate }),
	waits("guests.metadata", func(c *Cluster) *bool { return &c.Guests.Metadata }),
	waits("accounting", func(c *Cluster) *bool { return &c.Accounting }),
	waits("metrics", func(c *Cluster) *netip.AddrPort { return &c.Metrics }),
}

const differs = "changed"

// changes is a setting that changes now.
func changes[T any](key string, of func(*Cluster) *T) setting {
	return setting{key, func(was, is *Cluster, _ string) (now, waits []string) {
		if !equal(*of(was), *of(is)) {
			now = []string{differs}
		}
		return now, nil
	}, func(*Cluster, *Cluster, string) {}}
}

// waits is a setting that stays as it was until a restart.
func waits[T any](key string, of func(*Cluster) *T) setting {
	return setting{key, func(was, is *Cluster, _ string) (now, waits []string) {
		if !equal(*of(was), *of(is)) {
			waits = []string{differs}
		}
		return nil, waits
	}, func(into, was *Cluster, _ string) { *of(into) = *of(was) }}
}

// equal compares two values of a setting. An empty list is none.
func equal(a, b any) bool {
	empty := func(v reflect.Value) bool {
		return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
	}
	return reflect.DeepEqual(a, b) || empty(reflect.ValueOf(a)) && empty(reflect.ValueOf(b))
}

// things is a list of things with names, which changes now.
func things[T any](key string, of func(*Cluster) []T, name func(T) string) setting {
	return setting{key, func(was, is *Cluster, _ string) (now, waits []string) {
		return listed(of(was), of(is), name), nil
	}, func(*Cluster, *Cluster, string) {}}
}

// listed says what was added to a list of things with names, changed, and removed.
func listed[T any](was, is []T, name func(T) string) (all []string) {
	find := func(in []T, v T) int { return slices.IndexFunc(in, func(w T) bool { return name(w) == name(v) }) }
	for _, v := range is {
		switch i := find(was, v); {
		case i < 0:
			all = append(all, name(v)+" added")
		case !reflect.DeepEqual(was[i], v):
			all = append(all, name(v)+" changed")
		}
	}
	for _, v := range was {
		if find(is, v) < 0 {
			all = append(all, name(v)+" removed")
		}
	}
	if all == nil && !slices.EqualFunc(was, is, func(a, b T) bool { return name(a) == name(b) }) {
		all = []string{"order " + differs}
	}
	return all
}

// Reflectors: the embedded speaker opens and closes sessions while it runs. What a
// session was opened with stays: another password or port would end it, and the
// reflector would drop the node's routes until it is back.

func compareReflectors(was, is *Cluster, _ string) (now, waits []string) {
	merged := *is
	mergeReflectors(&merged, was, "")
	name := func(r RR) string { return r.Name }
	return listed(was.Reflectors, merged.Reflectors, name), listed(merged.Reflectors, is.Reflectors, name)
}

func mergeReflectors(into, was *Cluster, _ string) {
	if was.Speaker != SpeakerGoBGP {
		into.Reflectors = was.Reflectors
		return
	}
	into.Reflectors = slices.Clone(into.Reflectors)
	for i, r := range into.Reflectors {
		if at := slices.IndexFunc(was.Reflectors, func(b RR) bool { return b.Address == r.Address }); at >= 0 {
			into.Reflectors[i] = was.Reflectors[at]
		}
	}
}

// Nodes: the agent's own addresses are those from which it speaks, and where it listens.
// A registry of each node's own answers for all of a cluster of one node, and for none of
// the others in a larger one.

func compareNodes(was, is *Cluster, node string) (now, waits []string) {
	merged := *is
	mergeNodes(&merged, was, node)
	name := func(n Node) string { return n.Name }
	return listed(was.Nodes, merged.Nodes, name), listed(merged.Nodes, is.Nodes, name)
}

func mergeNodes(into, was *Cluster, node string) {
	if was.Registry.Etcd == nil && (len(was.Nodes) <= 1) != (len(into.Nodes) <= 1) {
		into.Nodes = was.Nodes
		return
	}
	into.Nodes = slices.Clone(into.Nodes)
	for i, n := range into.Nodes {
		if own, err := was.Node(node); n.Name == node && err == nil {
			into.Nodes[i] = own
		}
	}
}
