package endure

import (
	"net/netip"
	"slices"
)

// Kind says who runs a guest.
type Kind string

// The kinds of guests.
const (
	Domain   Kind = "domain"   // libvirt
	Instance Kind = "instance" // LXD
	Attached Kind = "attached" // nobody: it is attached by hand
)

// Guest is a guest and where it should be.
type Guest struct {
	Name     string
	Kind     Kind
	Prefixes []netip.Prefix
	Hosts    []string // the nodes that can run it
	On       string   // the node that runs it; empty: it does not run
}

// World is a cluster, and what should be true of it.
type World struct {
	Nodes      []string
	Reflectors []string
	Core       string            // the core gateway
	Members    int               // of the registry's etcd
	Witness    string            // the node whose agent lives from the first to the last moment
	Deaths     int               // how often the agent of another node is killed at most in one episode
	Daemons    map[string]string // routing daemons by the node that they speak for
	Sources    map[string][]Kind // whose hypervisors are on a node
	Tables     []string          // of each node's packet filter
	Guests     []Guest
}

// Guest returns the guest of that name.
func (w World) Guest(name string) Guest {
	i := slices.IndexFunc(w.Guests, func(g Guest) bool { return g.Name == name })
	if i < 0 {
		return Guest{}
	}
	return w.Guests[i]
}

// Moved returns the world in which a guest runs on a node; empty: on none.
func (w World) Moved(name, node string) World {
	w.Guests = slices.Clone(w.Guests)
	for i := range w.Guests {
		if w.Guests[i].Name == name {
			w.Guests[i].On = node
		}
	}
	return w
}

// Running lists the guests that run.
func (w World) Running() (all []Guest) {
	for _, g := range w.Guests {
		if g.On != "" {
			all = append(all, g)
		}
	}
	return all
}
