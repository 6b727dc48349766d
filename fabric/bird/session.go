package bird

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Sessions lists BIRD's BGP sessions, under the names of their protocols in its
// configuration. Since is when the protocol came up or went down; only the day if
// BIRD shows no more.
func (c Client) Sessions(ctx context.Context) ([]fabric.Session, error) {
	lines, err := c.Query(ctx, "show protocols all")
	if err != nil {
		return nil, err
	}
	return parseSessions(lines, time.Now()), nil
}

// parseSessions reads an answer to "show protocols all": a line for each protocol,
// with indented lines about it below.
func parseSessions(lines []string, now time.Time) []fabric.Session {
	var all []fabric.Session
	var s *fabric.Session // the session that the lines are about; nil for a protocol of another kind
	var state, lastError, message, channel string
	done := func() {
		if s != nil && s.Address != "" {
			if s.State == "established" && s.Families == nil {
				s.Families = []fabric.Family{}
			}
			s.Notification = notification(lastError, message, state)
			if who, reason, _ := strings.Cut(lastError, ": "); who == "Socket" && s.State != "established" {
				s.Failure = fabric.NewSessionFailure(reason, time.Time{})
			}
			all = append(all, *s)
		}
		s, state, lastError, message, channel = nil, "", "", "", ""
	}
	for _, line := range lines {
		if line != "" && line[0] != ' ' && line[0] != '\t' {
			done()
			// Name, protocol, table, state, since when (one field or two), info.
			if f := strings.Fields(line); len(f) >= 5 && f[1] == "BGP" {
				s, state = &fabric.Session{Peer: f[0], State: "idle", Since: parseSince(f[4:], now)}, f[3]
			}
			continue
		}
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Channel" {
			channel = f[1]
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if s == nil || !ok {
			continue
		}
		switch value = strings.TrimSpace(value); key {
		case "BGP state":
			s.State = stateOf(value)
		case "Neighbor address":
			s.Address = value
		case "Message": // with which the session was shut down last, by either side
			message = value
		case "Last error":
			lastError = value
		case "State": // of a channel, which is UP with the session where the peer has its family
			if f := fabric.Family(channel); value == "UP" && s.State == "established" && (f == fabric.IPv4 || f == fabric.IPv6) {
				s.Families = append(s.Families, f)
			}
		case "Routes": // of one of the channels
			s.Advertised += exported(value)
		}
	}
	done()
	return all
}

// stateOf returns one of BIRD's states by its name in RFC 4271. BIRD has Passive for
// Active if it waits for the peer's connection, Down for a protocol that is off, and
// Close for a protocol that is going down.
func stateOf(s string) string {
	switch s = strings.ToLower(s); s {
	case "connect", "active", "opensent", "openconfirm", "established":
		return s
	case "passive":
		return "active"
	}
	return "idle"
}

// exported reads "0 imported, 1 exported, 0 preferred".
func exported(routes string) uint64 {
	for part := range strings.SplitSeq(routes, ",") {
		if f := strings.Fields(part); len(f) == 2 && f[1] == "exported" {
			n, _ := strconv.ParseUint(f[0], 10, 64)
			return n
		}
	}
	return 0
}

// parseSince reads the fields of a time in one of BIRD's formats, which
// `timeformat protocol` sets: a time within the last 24 hours, a date, or both.
func parseSince(f []string, now time.Time) time.Time {
	if len(f) > 1 {
		if t, err := time.ParseInLocation(time.DateTime, f[0]+" "+f[1], now.Location()); err == nil {
			return t
		}
	}
	if t, err := time.ParseInLocation(time.DateOnly, f[0], now.Location()); err == nil {
		return t
	}
	t, err := time.Parse(time.TimeOnly, f[0]) // with a fraction of the second or without
	if err != nil {
		return time.Time{}
	}
	t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), now.Location())
	if t.After(now.Add(time.Second)) {
		t = t.AddDate(0, 0, -1)
	}
	return t
}

// Sent reports whether a prefix was sent on one of the sessions.
func (c Client) Sent(ctx context.Context, s fabric.Session, prefix netip.Prefix) (bool, error) {
	lines, err := c.routes(ctx, fmt.Sprintf("show route %s exported '%s'", prefix, s.Peer))
	if err != nil && strings.Contains(err.Error(), "syntax error") { // before 2.0.8
		lines, err = c.routes(ctx, fmt.Sprintf("show route %s export '%s'", prefix, s.Peer))
	}
	return slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, prefix.String()+" ") }), err
}

// Received gives the next hops of the routes to a prefix that came on one of the
// sessions, those too that the import filter rejects, if its channel has
// "import keep filtered".
func (c Client) Received(ctx context.Context, s fabric.Session, prefix netip.Prefix) (hops []netip.Addr, err error) {
	for _, which := range []string{"", " filtered"} {
		lines, err := c.routes(ctx, fmt.Sprintf("show route %s%s all protocol '%s'", prefix, which, s.Peer))
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			if via, is := nextHop(line); is {
				hops = append(hops, via)
			}
		}
	}
	return hops, nil
}

// nextHop gives the next hop that a line of "show route all" names: an address, which for
// IPv6 a link-local one may follow. BIRD 3 calls it by another name than BIRD 2.
func nextHop(line string) (via netip.Addr, is bool) {
	key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
	fields := strings.Fields(value)
	if key != "BGP.next_hop" && key != "bgp_next_hop" || len(fields) == 0 {
		return netip.Addr{}, false
	}
	via, err := netip.ParseAddr(fields[0])
	return via, err == nil
}

// routes answers a "show route"; no lines: there is none.
func (c Client) routes(ctx context.Context, command string) ([]string, error) {
	lines, err := c.Query(ctx, command)
	if err != nil && (strings.Contains(err.Error(), "Network not found") || strings.Contains(err.Error(), "No valid tables")) {
		return nil, nil
	}
	return lines, err
}
