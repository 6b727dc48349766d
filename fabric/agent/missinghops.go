package agent

import (
	"net/netip"
)

// missingHops says why families have no next hop; nil: they have one.
type missingHops struct{ v4, v6 error }

// of gives the error of a prefix's family.
func (m missingHops) of(p netip.Prefix) error {
	if p.Addr().Is4() {
		return m.v4
	}
	return m.v6
}

// errors lists those that there are.
func (m missingHops) errors() (all []error) {
	for _, err := range []error{m.v4, m.v6} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

func (a *Agent) missingHops() missingHops {
	return missingHops{a.dataplane.NextHop(false), a.dataplane.NextHop(true)}
}
