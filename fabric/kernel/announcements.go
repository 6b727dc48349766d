package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// announcements has the announcements of an [Announcer] as they were put and as
// they are in the kernel. It decides what to add and what to remove, and sends no
// requests. A goroutine that has it, by [Announcer.open], has it alone.
type announcements struct {
	drifted signal.Signal // an announcement is not as it was put
	repair  signal.Signal // one leads elsewhere than to its port, or went without a notification

	cache    *routeCache             // nil: not loaded yet
	want     map[netip.Prefix]uint32 // metrics, as put or found
	changing map[netip.Prefix]bool   // a change is under way: compare skips them
	last     time.Time               // when a route of ours last came or went
}

func newAnnouncements(drifted, repair signal.Signal) announcements {
	return announcements{drifted: drifted, repair: repair, want: map[netip.Prefix]uint32{}, changing: map[netip.Prefix]bool{}, last: time.Now()}
}

// load replaces the state of the kernel by a listing. The first load adopts the
// announcements that are in the kernel. Later ones compare them.
func (s *announcements) load(l rtnl.Listing) {
	cache := readRoutes(l)
	if s.cache == nil {
		s.cache = cache
		s.adopt(slices.Collect(maps.Keys(cache.routes)))
		s.repair.Send()
		return
	}
	cache.unnotified = s.cache.unnotified
	s.cache = cache
	s.compare(slices.Collect(maps.Keys(s.want)))
	s.compare(slices.Collect(maps.Keys(cache.routes)))
}

// apply updates the state of the kernel by notifications.
func (s *announcements) apply(msgs []netlink.Message) {
	for _, m := range msgs {
		if touched := s.cache.apply(m); len(touched) > 0 {
			s.compare(touched)
			s.last = time.Now()
		}
	}
	if len(s.cache.unnotified) > 0 {
		s.repair.Send()
	}
}

// adopt makes the announcements that are in the kernel the wanted ones.
func (s *announcements) adopt(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		if rs := s.cache.announcements(p); len(rs) > 0 {
			s.want[p] = rs[0].metric
		} else {
			delete(s.want, p)
		}
	}
}

// compare signals whether announcements of the prefixes differ from the wanted
// ones, or lead astray.
func (s *announcements) compare(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		if s.changing[p] {
			continue
		}
		rs := s.cache.announcements(p)
		metric, wanted := s.want[p]
		if wanted != (len(rs) > 0) || len(rs) > 1 || wanted && rs[0].metric != metric {
			s.drifted.Send()
		}
		if len(s.cache.astray(p)) > 0 {
			s.repair.Send()
		}
	}
}

// routes lists what the node announces, in the order of the prefixes.
func (s *announcements) routes() []fabric.Route {
	routes := []fabric.Route{}
	for p := range s.cache.routes {
		if rs := s.cache.announcements(p); len(rs) > 0 {
			routes = append(routes, fabric.Route{Prefix: p, Preference: preferenceOf(rs[0].metric)})
		}
	}
	slices.SortFunc(routes, func(a, b fabric.Route) int {
		return a.Prefix.Compare(b.Prefix)
	})
	return routes
}

func preferenceOf(metric uint32) fabric.Preference {
	if metric == fabric.Normal.LocalPref() {
		return fabric.Normal
	}
	return fabric.Preference(metric)
}

// begin makes compare skip prefixes until [announcements.end].
func (s *announcements) begin(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		s.changing[p] = true
	}
}

// end ends the change of prefixes. After an error the announcements that are in the
// kernel become the wanted ones: the caller learns of the error.
func (s *announcements) end(prefixes []netip.Prefix, err error) {
	clear(s.changing)
	if err != nil {
		s.adopt(prefixes)
		return
	}
	s.compare(prefixes)
}

// announceSteps brings the kernel to the wanted announcements.
type announceSteps struct {
	portless []netip.Prefix // to which no port of this node has a route
	astray   []route        // to remove first
	missing  []route        // to add
	stale    []route        // to remove then: those of another preference
}

// plan returns the steps to the metrics of some prefixes. It takes those that are
// there already as wanted.
func (s *announcements) plan(prefixes []netip.Prefix, metrics map[netip.Prefix]uint32) (steps announceSteps) {
	for _, p := range prefixes {
		metric := metrics[p]
		r, ok := s.cache.port(p)
		if !ok {
			steps.portless = append(steps.portless, p)
			continue
		}
		r.metric = metric
		steps.astray = append(steps.astray, s.cache.astray(p)...)
		have := s.cache.announcements(p)
		if !slices.Contains(have, r) {
			steps.missing = append(steps.missing, r)
		} else {
			s.want[p] = metric
		}
		for _, h := range have {
			if h.metric != metric {
				steps.stale = append(steps.stale, h)
			}
		}
	}
	return steps
}

// added takes an announcement that the kernel accepted as wanted.
func (s *announcements) added(r route) { s.want[r.prefix] = r.metric }

// removed takes the announcements of prefixes as unwanted.
func (s *announcements) removed(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		delete(s.want, p)
	}
}

// of lists the announcements of prefixes.
func (s *announcements) of(prefixes []netip.Prefix) (all []route) {
	for _, p := range prefixes {
		all = append(all, s.cache.announcements(p)...)
	}
	return all
}

// has reports whether the kernel has a route.
func (s *announcements) has(r route) bool { return slices.Contains(s.cache.routes[r.prefix], r) }

// astray lists the announcements that lead elsewhere than to their ports.
func (s *announcements) astray() (all []route) {
	for p := range s.cache.routes {
		all = append(all, s.cache.astray(p)...)
	}
	return all
}

// takeUnnotified returns the announcements that the kernel dropped without a
// notification, and forgets them.
func (s *announcements) takeUnnotified() []route {
	unnotified := slices.DeleteFunc(s.cache.unnotified, s.has)
	s.cache.unnotified = nil
	return unnotified
}
