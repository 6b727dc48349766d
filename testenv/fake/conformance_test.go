package fake_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/fake"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

func TestDataplaneConforms(t *testing.T) {
	conformance.Dataplane(t, func(*testing.T) (fabric.Dataplane, conformance.Controls) {
		d := fake.NewDataplane(nil)
		last, came := d, map[string][][]byte{}
		return d, conformance.Controls{
			Again: func(*testing.T) fabric.Dataplane {
				last = d.Again()
				return last
			},
			Guest: &conformance.Guest{
				Send: func(_ *testing.T, port string, frame []byte) {
					answers, _ := last.Ask(port, frame)
					came[port] = append(came[port], answers...)
				},
				Received: func(_ *testing.T, port string) [][]byte {
					frames := came[port]
					delete(came, port)
					return frames
				},
			},
			Mover: &conformance.Mover{
				Other: fabric.Node{Name: "node2", Address: netip.MustParseAddr("10.10.0.22"), Address6: netip.MustParseAddr("fd00:10:10::22")},
				Hear:  func(_ *testing.T, p fabric.Port) { d.Hear(p.Name) },
				Say: func(_ *testing.T, p fabric.Port, from netip.Addr) {
					for _, own := range p.NIC.Prefixes() {
						if own.Contains(from) {
							d.Hear(p.Name)
						}
					}
				},
			},
			Breaker: conformance.Breaker{
				AddLink:    func(_ *testing.T, name string) { d.AddLink(name) },
				HasForeign: func(_ *testing.T, name string) bool { return d.Foreign(name) },
				DelLink:    func(_ *testing.T, name string) { d.RemoveLink(name) },
				SetDown:    func(_ *testing.T, name string) { d.Break(name, "link is down") },
				DelAddress: func(_ *testing.T, name string, a netip.Addr) { d.Break(name, fmt.Sprint("no gateway ", a)) },
				DelRoute:   func(_ *testing.T, name string, p netip.Prefix) { d.Break(name, fmt.Sprint("no route ", p)) },
				SetCarrier: func(_ *testing.T, name string, up bool) { d.SetCarrier(name, up) },
			},
		}
	})
}

func TestSpeakerConforms(t *testing.T) {
	conformance.Speaker(t, func(*testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		s := fake.NewSpeaker(nil)
		return s, conformance.SpeakerControls{Lose: func(_ *testing.T, p netip.Prefix) { s.Lose(p) }}
	})
}

func TestStoreConforms(t *testing.T) {
	conformance.Store(t, func(*testing.T) (fabric.Store, conformance.StoreControls) {
		s := fake.NewStore(nil)
		return s, conformance.StoreControls{
			Again:  func(*testing.T) fabric.Store { return s },
			Damage: func(_ *testing.T, vm string) { s.Damage(vm, errors.New("damaged")) },
		}
	})
}

func TestResolverConforms(t *testing.T) {
	conformance.Resolver(t, func(*testing.T) (fabric.Resolver, conformance.ResolverControls) {
		r := fake.NewResolver()
		return r, conformance.ResolverControls{
			Know: func(_ *testing.T, q fabric.Query, nics ...fabric.NIC) { r.Know(q.VM, nics...) },
			Hang: func(_ *testing.T, vm string) { r.Hang("resolve " + vm) },
		}
	})
}

func TestObserverConforms(t *testing.T) {
	conformance.Observer(t, func(*testing.T) (fabric.Observer, conformance.ObserverControls) {
		o := fake.NewObserver()
		return o, conformance.ObserverControls{
			Received: func(*testing.T) []fabric.Event { return o.Events() },
			Hang:     func(*testing.T) func() { return o.Hang("observe") },
		}
	})
}

func TestNodesConform(t *testing.T) {
	conformance.Nodes(t, func(*testing.T) ([]fabric.Node, map[string]fabric.Nodes, conformance.NodesControls) {
		var nodes []fabric.Node
		for i, name := range conformance.NodeNames {
			nodes = append(nodes, fabric.Node{Name: name, Address: core.Underlay4(byte(21 + i)), Address6: core.Underlay6(byte(21 + i))})
		}
		fakes := fake.NewNodes(nil, nodes...)
		ends := map[string]fabric.Nodes{}
		for name, end := range fakes {
			ends[name] = end
		}
		return nodes, ends, conformance.NodesControls{
			Join: func(_ *testing.T, name string) (fabric.Node, fabric.Nodes) {
				n := fabric.Node{Name: name, Address: core.Underlay4(30)}
				return n, fakes["node1"].Join(n)
			},
			Cut: func(_ *testing.T, a, b string) func() {
				fakes[a].Cut(b, true)
				return func() { fakes[a].Cut(b, false) }
			},
		}
	})
}

func TestRegistryConforms(t *testing.T) {
	conformance.Registry(t, func(*testing.T) (fabric.Registry, conformance.RegistryControls) {
		r := fake.NewRegistry(nil, conformance.RegistryCluster())
		return r, conformance.RegistryControls{
			Again: func(*testing.T) fabric.Registry { return r },
			Pass:  func(_ *testing.T, d time.Duration) { r.Pass(d) },
		}
	})
}
