package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// protocols are those by which a guest learns addresses of a family.
func protocols(a netip.Addr) []fabric.ContactProtocol {
	if a.Is4() {
		return []fabric.ContactProtocol{fabric.DHCPv4}
	}
	return []fabric.ContactProtocol{fabric.DHCPv6, fabric.RouterSolicitation}
}

// step says when the guest last asked for its configuration in an address's family. It
// is always good: a guest that is configured by hand asks nothing.
func (s Answers) step(a netip.Addr, contacts []fabric.Contact) fabric.Step {
	is := fabric.Step{Step: "configuration", Good: true}
	var asked, names, off []string
	for _, p := range protocols(a) {
		if s.turnsOff(p) {
			off = append(off, map[bool]string{true: "router advertisement", false: "DHCP"}[p == fabric.RouterSolicitation])
			continue
		}
		names = append(names, p.String())
		for _, c := range contacts {
			if c.Protocol == p {
				asked = append(asked, s.asked(c))
			}
		}
	}
	switch {
	case len(names) == 0:
		is.Text = "the guest is configured by hand"
	case len(asked) == 0:
		is.Text = fmt.Sprintf("the guest never asked by %s, as far as the agent knows, which listens since %s; a guest configured by hand does not",
			strings.Join(names, " or "), s.Since.Format(time.DateTime))
	default:
		is.Text = "the guest asked " + strings.Join(asked, " and ")
	}
	switch len(off) {
	case 1:
		is.Text += "; " + off[0] + " is off"
	case 2:
		is.Text += "; " + off[0] + " and " + off[1] + " are off"
	}
	return is
}

func (s Answers) turnsOff(p fabric.ContactProtocol) bool {
	if p == fabric.RouterSolicitation {
		return s.NoRA
	}
	return s.NoDHCP
}

// asked describes a request and its answer.
func (s Answers) asked(c fabric.Contact) string {
	who := slices.DeleteFunc([]string{c.Message, c.Hostname, c.Client}, func(w string) bool { return w == "" })
	t := fmt.Sprintf("by %s %v ago", c.Protocol, max(0, s.Now.Sub(c.At)).Round(time.Second))
	if len(who) > 0 {
		t += " (" + strings.Join(who, ", ") + ")"
	}
	if c.Declined.IsValid() {
		t += fmt.Sprintf(", declined %s", c.Declined)
	}
	if c.Refused != "" {
		t += ", refused: " + c.Refused
	}
	return t
}
