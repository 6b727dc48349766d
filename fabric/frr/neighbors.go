package frr

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vmfabric/vmfabric/fabric"
)

// replyBound is how long FRR may take for one answer.
const replyBound = 10 * time.Second

// Sessions lists FRR's BGP sessions of the default VRF, without names. It
// returns after ten seconds at the latest.
func (c Client) Sessions(ctx context.Context) ([]fabric.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, replyBound)
	defer cancel()
	var neighbors neighbors
	if err := c.JSON(ctx, "show bgp neighbors json", &neighbors); err != nil {
		return nil, err
	}
	return neighbors.sessions(time.Now()), nil
}

// neighbors is the answer to "show bgp neighbors json", by address.
type neighbors map[string]neighbor

type neighbor struct {
	BGPState string `json:"bgpState"`
	// For how long the session has been up or down, in milliseconds.
	UpMsec       int64 `json:"bgpTimerUpMsec"`
	ResetMsec    int64 `json:"lastResetTimerMsecs"`
	Capabilities *struct {
		Multiprotocol map[string]capability `json:"multiprotocolExtensions"` // by family, as in Families
	} `json:"neighborCapabilities"` // of an established session
	Families map[string]struct {
		Sent uint64 `json:"sentPrefixCounter"`
	} `json:"addressFamilyInfo"`
	// Of the last NOTIFICATION: code and subcode, two hexadecimal digits each, and who
	// sent it. A session that ended without a NOTIFICATION has other words here.
	Code          string `json:"lastErrorCodeSubcode"`
	DueTo         string `json:"lastResetDueTo"`
	Communication string `json:"lastShutdownDescription"`
}

// capability has the sides that announced a capability.
type capability struct {
	Both     bool `json:"advertisedAndReceived"`
	Received bool `json:"received"`
}

// FRR's names of the families.
var families = map[fabric.Family]string{fabric.IPv4: "ipv4Unicast", fabric.IPv6: "ipv6Unicast"}

func (ns neighbors) sessions(now time.Time) []fabric.Session {
	var all []fabric.Session
	for address, n := range ns {
		s := fabric.Session{Address: address, State: strings.ToLower(n.BGPState), Notification: n.notification(now)}
		ago := n.UpMsec
		if s.State != "established" {
			ago = n.ResetMsec
		}
		s.Since = now.Add(-time.Duration(ago) * time.Millisecond)
		for _, f := range n.Families {
			s.Advertised += f.Sent
		}
		switch s.State {
		case "established":
			s.Families = n.negotiated()
		case "connect", "active", "opensent", "openconfirm":
		default: // Clearing, Deleted
			s.State = "idle"
		}
		if s.State != "established" && s.Notification == nil {
			s.Failure = fabric.NewSessionFailure(n.DueTo, now.Add(-time.Duration(n.ResetMsec)*time.Millisecond)) // "Peer closed the session"
		}
		all = append(all, s)
	}
	return all
}

// negotiated returns the families of an established session; nil if FRR does not show
// them.
func (n neighbor) negotiated() []fabric.Family {
	if n.Capabilities == nil {
		return nil
	}
	all := []fabric.Family{}
	offered := false // the peer has the capability
	for _, c := range n.Capabilities.Multiprotocol {
		offered = offered || c.Both || c.Received
	}
	for f, name := range families {
		_, configured := n.Families[name]
		// A peer without the multiprotocol capability speaks IPv4 (RFC 4760, 8).
		if n.Capabilities.Multiprotocol[name].Both || !offered && configured && f == fabric.IPv4 {
			all = append(all, f)
		}
	}
	slices.Sort(all)
	return all
}

func (n neighbor) notification(now time.Time) *fabric.Notification {
	// "BGP Notification received", "BGP Notification send"
	if len(n.Code) != 4 || !strings.Contains(n.DueTo, "Notification") {
		return nil
	}
	code, err := strconv.ParseUint(n.Code, 16, 16)
	if err != nil {
		return nil
	}
	return fabric.NewNotification(!strings.Contains(n.DueTo, "received"), uint8(code>>8), uint8(code), unescape(n.Communication),
		now.Add(-time.Duration(n.ResetMsec)*time.Millisecond))
}

// hexByte matches FRR's notation of a byte that is not ASCII.
var hexByte = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// unescape decodes a text in which FRR wrote bytes in hexadecimal.
func unescape(s string) string {
	plain := hexByte.ReplaceAllStringFunc(s, func(x string) string {
		b, _ := strconv.ParseUint(x[2:], 16, 8)
		return string([]byte{byte(b)})
	})
	if !utf8.ValidString(plain) {
		return s
	}
	return plain
}

// AdvertisedTo returns the addresses of the peers in the default VRF to which FRR has
// sent a prefix. It returns after ten seconds at the latest.
func (c Client) AdvertisedTo(ctx context.Context, prefix netip.Prefix) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, replyBound)
	defer cancel()
	var route struct {
		Peers map[string]struct{} `json:"advertisedTo"`
	}
	if err := c.JSON(ctx, fmt.Sprintf("show bgp %s unicast %s json", string(fabric.FamilyOf(prefix)), prefix), &route); err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(route.Peers)), nil
}

// Sent reports whether a prefix was sent on one of the sessions.
func (c Client) Sent(ctx context.Context, s fabric.Session, prefix netip.Prefix) (bool, error) {
	to, err := c.AdvertisedTo(ctx, prefix)
	return slices.Contains(to, s.Address), err
}

// Received gives the next hops of the routes to a prefix that came on one of the
// sessions, those too that the route map rejects, if the neighbor has
// "soft-reconfiguration inbound". It returns after ten seconds at the latest.
func (c Client) Received(ctx context.Context, s fabric.Session, prefix netip.Prefix) (hops []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, replyBound)
	defer cancel()
	family := string(fabric.FamilyOf(prefix))
	var used struct {
		Paths []struct {
			Peer struct {
				PeerID string `json:"peerId"`
			}
			Nexthops []struct{ IP, Scope string }
		}
	}
	if err := c.JSON(ctx, fmt.Sprintf("show bgp %s unicast %s json", family, prefix), &used); err != nil {
		return nil, err
	}
	add := func(hop string) {
		if via, err := netip.ParseAddr(hop); err == nil && !slices.Contains(hops, via) && !via.IsLinkLocalUnicast() {
			hops = append(hops, via)
		}
	}
	for _, p := range used.Paths {
		for _, hop := range p.Nexthops {
			if p.Peer.PeerID == s.Address {
				add(hop.IP)
			}
		}
	}
	var kept struct {
		Routes map[string]struct {
			NextHop       string `json:"nextHop"`
			NextHopGlobal string `json:"nextHopGlobal"`
		} `json:"receivedRoutes"`
	}
	out, err := c.Run(ctx, fmt.Sprintf("show bgp %s unicast neighbors %s received-routes json", family, s.Address))
	if err != nil {
		return nil, err
	}
	if json.Unmarshal([]byte(out), &kept) != nil { // a text that says that they are not kept
		return hops, nil
	}
	is := kept.Routes[prefix.String()]
	add(is.NextHop)
	add(is.NextHopGlobal)
	return hops, nil
}
