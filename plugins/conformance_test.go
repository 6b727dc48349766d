package plugins_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv/conformance"
)

func TestSpeakerConforms(t *testing.T) {
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		s := newSpecimen(t)
		sp := s.openSpeaker(t, "", plugins.Times{})
		return sp, conformance.SpeakerControls{
			Lose: func(t *testing.T, p netip.Prefix) { s.tell(t, command{Do: "lose", What: p.String()}) },
		}
	})
}

func TestResolverConforms(t *testing.T) {
	conformance.Resolver(t, func(t *testing.T) (fabric.Resolver, conformance.ResolverControls) {
		s := newSpecimen(t)
		r, err := plugins.OpenResolver(t.Context(), s.program(""), s.options(plugins.Times{})...)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, r.Close()) })
		return r, conformance.ResolverControls{
			Know: func(t *testing.T, q fabric.Query, nics ...fabric.NIC) {
				s.tell(t, command{Do: "know", Query: q, NICs: nics})
			},
			Hang: func(t *testing.T, vm string) { s.tell(t, command{Do: "hang", What: "resolve " + vm}) },
		}
	})
}

func TestObserverConforms(t *testing.T) {
	conformance.Observer(t, func(t *testing.T) (fabric.Observer, conformance.ObserverControls) {
		s := newSpecimen(t)
		o, err := plugins.OpenObserver(t.Context(), s.program(""), s.options(plugins.Times{})...)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, o.Close()) })
		return o, conformance.ObserverControls{
			Received: func(t *testing.T) []fabric.Event { return s.tell(t, command{Do: "events"}).Events },
			Hang: func(t *testing.T) func() {
				s.tell(t, command{Do: "hang", What: "observe"})
				return func() { s.tell(t, command{Do: "release", What: "observe"}) }
			},
		}
	})
}
