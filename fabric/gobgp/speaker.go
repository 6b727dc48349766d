package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/notifications"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Config has what a [Speaker] cannot do without.
type Config struct {
	Cluster fabric.Cluster // with its defaults, see [fabric.Cluster.WithDefaults]
	Node    fabric.Node    // the speaking node: source of the sessions, next hop of the routes
}

// Option changes a [Speaker] at its making.
type Option func(*Speaker)

// WithLogger sets the speaker's logger; without it the speaker logs nothing.
func WithLogger(l *slog.Logger) Option { return func(s *Speaker) { s.log = l } }

// Speaker announces a node's routes to all reflectors of its cluster.
//
// Put the routes of a restarted node before [Speaker.Run]: the reflectors then get
// them first and End-of-RIB (RFC 4724) after them, and drop none of those that they
// kept.
type Speaker struct {
	cluster fabric.Cluster
	node    fabric.Node
	log     *slog.Logger
	changed signal.Signal
	serving sync.WaitGroup // the goroutines that Run waits for
	learner Learner        // nil: the speaker learns nothing
	in      *ribIn
	notes   *notifications.Tracker

	mu     sync.Mutex
	bgp    *server.BgpServer // nil before Run
	routes map[netip.Prefix]fabric.Route
	up     map[string]bool      // the established sessions, by peer address
	since  map[string]time.Time // when a session last came up or went down
	closed bool                 // Run is ending
	// resuming has the peers whose session has not been up since the speaker took
	// up earlier routes. Until settled, GoBGP holds updates back and loses
	// withdrawals.
	resuming map[string]bool
	settled  time.Time
	opening  map[string]time.Time // when the last session with a peer reached OpenConfirm
	removals resend.Removals
}

// New makes a speaker, which takes routes but has no sessions before Run. It
// refuses a node that has no address of a reflector's family.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	s := &Speaker{
		cluster: cfg.Cluster, node: cfg.Node, log: slog.New(slog.DiscardHandler),
		changed: signal.New(), notes: notifications.New(),
		routes: map[netip.Prefix]fabric.Route{}, up: map[string]bool{}, since: map[string]time.Time{}, resuming: map[string]bool{}, opening: map[string]time.Time{},
	}
	for _, rr := range s.cluster.Reflectors {
		if !s.node.Source(rr.Address).IsValid() {
			return nil, fmt.Errorf("reflector %s: %s: node %s has no address of that family", rr.Name, rr.Address, s.node.Name)
		}
		s.note(rr.Address.String(), false)
	}
	for _, o := range opts {
		o(s)
	}
	s.in = newRIBIn(s.learner, s.cluster, s.node, s.log)
	return s, nil
}

// Run opens the sessions to all reflectors and announces until ctx ends. A session
// comes up when its reflector answers. Call Run once, after the first routes were
// put. It listens on no port.
//
// It ends the sessions without a Cease notification: after one, the reflectors
// would drop the routes at once. So they keep the routes for the graceful restart
// time, and a successor takes over. To withdraw routes, remove them first.
func (s *Speaker) Run(ctx context.Context) error {
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("bgp: %w", err)
	}
	return nil
}

func (s *Speaker) run(ctx context.Context) error {
	b, err := peering.Serve(ctx, s.notes.Through(s.log), &s.serving, &api.Global{
		Asn: s.cluster.ASN, RouterId: fabric.RouterID(s.node.Address, s.node.Address6).String(), ListenPort: -1,
	})
	if err != nil {
		return peering.Fault(ctx, err)
	}
	working, end := context.WithCancel(ctx)
	if err = s.open(working, b); err == nil {
		<-ctx.Done()
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	end()
	s.in.end()
	err = errors.Join(peering.Fault(ctx, err), peering.Leave(ctx, b))
	s.serving.Wait()
	return err
}

// open gives GoBGP the routes that were put, and then its peers.
func (s *Speaker) open(ctx context.Context, b *server.BgpServer) error {
	if err := ownOnly(ctx, b); err != nil {
		return err
	}
	resumed, err := s.begin(b)
	if err != nil {
		return err
	}
	if err := s.watch(ctx, b); err != nil {
		return err
	}
	for _, rr := range s.cluster.Reflectors {
		source := s.node.Source(rr.Address)
		s.serving.Go(func() {
			tap(ctx, s.log, source, rr.Address, cmp.Or(rr.Port, bgpPort), func(n *fabric.Notification) { s.notes.Hear(rr.Address, n) })
		})
		s.mu.Lock()
		s.resuming[rr.Address.String()] = resumed
		s.mu.Unlock()
		if err := b.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(rr, source, resumed)}); err != nil {
			return fmt.Errorf("reflector %s: %w", rr.Name, err)
		}
	}
	if s.learner != nil {
		s.serving.Go(func() { s.in.settleAfter(ctx, s.cluster.Timers.Restart) })
	}
	return nil
}

// begin gives GoBGP the routes that were put, and passes changes on to it from now
// on. It reports whether there were any: the speaker then resumes.
func (s *Speaker) begin(b *server.BgpServer) (resumed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []*apiutil.Path
	for _, r := range s.routes {
		p, err := s.path(r)
		if err != nil {
			return false, fmt.Errorf("route %s: %w", r.Prefix, err)
		}
		paths = append(paths, p)
	}
	if len(paths) > 0 {
		if _, err := b.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return false, err
		}
	}
	s.bgp = b
	return len(paths) > 0, nil
}

// server returns the server that Run started; nil before.
func (s *Speaker) server() *server.BgpServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bgp
}

// watch handles the events of the sessions and, in one order with them, the
// updates.
func (s *Speaker) watch(ctx context.Context, b *server.BgpServer) error {
	s.serving.Go(func() { s.in.emitCompetitors(ctx) })
	s.serving.Go(func() { s.lookUpCompetitors(ctx, b) })
	callbacks := server.WatchEventMessageCallbacks{OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
		s.peerChanged(ctx, e, at)
	}}
	options := append([]server.WatchOption{server.WatchPeer()}, s.in.watch(&callbacks)...)
	return b.WatchEvent(ctx, callbacks, options...)
}

// ownOnly keeps the reflectors' routes out of the table from which GoBGP announces
// the best ones. Otherwise GoBGP would withdraw a prefix that another node
// announces with a higher LOCAL_PREF, and the prefix would be missing when the
// other node goes. The export policy passes all own routes but those that stand for
// a withdrawal.
func ownOnly(ctx context.Context, b *server.BgpServer) error {
	policy := &api.Policy{Name: "own routes", Statements: []*api.Statement{{
		Name:       "own routes",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := b.AddPolicy(ctx, &api.AddPolicyRequest{Policy: policy}); err != nil {
		return err
	}
	if err := b.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{policy},
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}}); err != nil {
		return err
	}
	out := &api.Policy{Name: peering.ExportName, Statements: []*api.Statement{resend.KeptBack()}}
	if err := b.AddPolicy(ctx, &api.AddPolicyRequest{Policy: out}); err != nil {
		return err
	}
	return b.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: peering.GlobalTable, Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: []*api.Policy{out},
		DefaultAction: peering.Accept,
	}})
}

// resumeWait bounds, in seconds, how long a speaker that takes up earlier routes
// waits for the End-of-RIB of all reflectors (the deferral of RFC 4724). It is
// short: a node announces its own routes, whatever the reflectors send.
const resumeWait = 1

// resumeSlack is time for GoBGP to handle the end of resumeWait.
const resumeSlack = 100 * time.Millisecond

func (s *Speaker) peer(rr fabric.RR, source netip.Addr, resumed bool) *api.Peer {
	t := s.cluster.Timers
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: rr.Address.String(), PeerAsn: rr.ASN, AuthPassword: rr.Password, Description: rr.Name},
		Timers:    peering.Timers(t),
		Transport: &api.Transport{LocalAddress: source.String(), RemotePort: uint32(rr.Port)},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(t.Restart.Seconds()), DeferralTime: resumeWait,
			// It says "I restarted, and went on forwarding", so that a reflector
			// keeps the routes that it still has.
			LocalRestarting: resumed,
		},
		AfiSafis: peering.BothFamilies(),
	}
	peering.LongLived(p, t)
	switch {
	case rr.GTSM:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	case rr.ASN != s.cluster.ASN:
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	}
	if rr.BFD {
		p.Bfd = peering.BFD()
	}
	return p
}

// Changed implements [fabric.Speaker].
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

func (s *Speaker) peerChanged(ctx context.Context, e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	s.notes.State(e.Peer.State, at)
	if e.Peer.State.SessionState == bgp.BGP_FSM_OPENCONFIRM {
		s.mu.Lock()
		s.opening[e.Peer.State.NeighborAddress.String()] = at
		s.mu.Unlock()
	}
	peer, up := e.Peer.State.NeighborAddress.String(), e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
	if !s.note(peer, up) {
		return
	}
	if up {
		s.in.opened(e.Peer.State.NeighborAddress)
		s.mu.Lock()
		if !s.closed { // Run waits only for goroutines that start before this
			s.serving.Go(func() { s.resend(ctx, peer) })
		}
		s.mu.Unlock()
	} else if peering.Broke(e) {
		s.restBFD(ctx, e.Peer.State.NeighborAddress)
	}
	s.changed.Send()
}

// restBFD ends the BFD session with a reflector for a moment, see [peering.Broke].
func (s *Speaker) restBFD(ctx context.Context, peer netip.Addr) {
	i := slices.IndexFunc(s.cluster.Reflectors, func(rr fabric.RR) bool { return rr.Address == peer && rr.BFD })
	if i < 0 {
		return
	}
	rr := s.cluster.Reflectors[i]
	s.setBFD(ctx, rr, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.serving.Go(func() {
		if backoff.Sleep(ctx, peering.BFDRest) {
			s.setBFD(ctx, rr, true)
		}
	})
}

// setBFD turns BFD with a reflector on or off, unless there is a session.
func (s *Speaker) setBFD(ctx context.Context, rr fabric.RR, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.up[rr.Address.String()] {
		return
	}
	if err := peering.SetBFD(ctx, s.bgp, s.peer(rr, s.node.Source(rr.Address), false), on); err != nil && ctx.Err() == nil {
		s.log.Warn("BFD not changed", "peer", rr.Name, "on", on, "err", err)
	}
}

// resend sends a peer whose session is up everything, and End-of-RIB, and withdraws
// once more what was withdrawn meanwhile (see [resend]).
//
// A resuming GoBGP would hold everything back until the End-of-RIB of all peers, or
// for resumeWait. Until then the routes are stale at the reflector, which must drop
// them at once if that session ends too (RFC 4724, 4.2, consecutive restarts).
func (s *Speaker) resend(ctx context.Context, peer string) {
	p := resend.Established(ctx, s.server(), peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == nil || s.closed || !s.up[peer] {
		return
	}
	switch held := p.GetGracefulRestart().GetLocalRestarting(); {
	case s.resuming[peer]:
		delete(s.resuming, peer)
		s.settled = time.Now().Add(resumeWait*time.Second + resumeSlack)
	case held: // GoBGP sends it everything when its deferral ends
		return
	}
	if err := resend.Table(ctx, s.bgp, peer); err != nil {
		s.log.Warn("routes not sent at once", "peer", peer, "err", err)
	}
	again := slices.DeleteFunc(s.removals.Since(s.opening[peer]), func(p netip.Prefix) bool {
		_, announced := s.routes[p]
		return announced
	})
	if len(again) > 0 {
		if err := resend.Withdraw(s.bgp, again); err != nil {
			s.log.Warn("routes not withdrawn once more", "peer", peer, "err", err)
		}
	}
}

// note records the state of a session and reports whether it changed: a session
// that is down goes through several states over and over.
func (s *Speaker) note(peer string, up bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.since[peer]; known && s.up[peer] == up {
		return false
	}
	s.up[peer], s.since[peer] = up, time.Now()
	return true
}

// Actual implements [fabric.Speaker], in the order of the prefixes.
func (s *Speaker) Actual(context.Context) ([]fabric.Route, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	routes := make([]fabric.Route, 0, len(s.routes))
	for _, r := range s.routes {
		routes = append(routes, r)
	}
	slices.SortFunc(routes, func(a, b fabric.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return routes, nil
}

// Put implements [fabric.Speaker].
func (s *Speaker) Put(_ context.Context, routes ...fabric.Route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []*apiutil.Path
	for _, r := range routes {
		if have, there := s.routes[r.Prefix]; there && have == r {
			continue
		}
		p, err := s.path(r)
		if err != nil {
			return fmt.Errorf("route %s: %w", r.Prefix, err)
		}
		paths = append(paths, p)
	}
	if len(paths) == 0 {
		return nil
	}
	if s.bgp != nil {
		if _, err := s.bgp.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("bgp: %w", err)
		}
	}
	for _, r := range routes {
		s.routes[r.Prefix] = r
		s.in.announcing(r.Prefix)
	}
	return nil
}

// Remove implements [fabric.Speaker]. In the first second of a restarted speaker's
// session it waits, because GoBGP would not pass the withdrawal on.
func (s *Speaker) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for wait := time.Until(s.settled); wait > 0; wait = time.Until(s.settled) {
		s.mu.Unlock()
		backoff.Sleep(ctx, wait)
		s.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var paths []*apiutil.Path
	for _, prefix := range prefixes {
		r, there := s.routes[prefix]
		if !there {
			continue
		}
		p, err := s.path(r)
		if err != nil {
			return fmt.Errorf("route %s: %w", prefix, err)
		}
		p.Withdrawal = true
		paths = append(paths, p)
	}
	if len(paths) == 0 {
		return nil
	}
	if s.bgp != nil {
		if err := s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("bgp: %w", err)
		}
	}
	s.in.withdrawn(prefixes...)
	for _, prefix := range prefixes {
		delete(s.routes, prefix)
	}
	s.removals.Add(time.Now(), prefixes...)
	return nil
}

// freshMED is the MED of a Fresh route, unless it is [fabric.Route.First]. Of two
// Fresh routes the first has no MED, which counts as zero and is better (RFC 4271,
// 9.1.2.2). The reflectors accept no LOCAL_PREF above that of Fresh, and without
// the MED the lower router id would decide.
const freshMED = 1

// path returns a route in GoBGP's terms: origin IGP, the node as next hop,
// LOCAL_PREF, which an eBGP session leaves out, and the communities of the cluster,
// of the preference and of the holder.
func (s *Speaker) path(r fabric.Route) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), bgp.NewPathAttributeLocalPref(r.Preference.LocalPref()),
	}
	if r.Preference == fabric.Fresh && !r.First {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(freshMED))
	}
	family, hop := bgp.RF_IPv4_UC, cmp.Or(s.node.Address, s.node.Address6)
	if r.Prefix.Addr().Is6() {
		family, hop = bgp.RF_IPv6_UC, s.node.Address6
		if !hop.IsValid() {
			hop = netip.AddrFrom16(s.node.Address.As16()) // IPv4-mapped (RFC 4291 2.5.5.2)
		}
	}
	if family == bgp.RF_IPv4_UC && hop.Is4() {
		a, err := bgp.NewPathAttributeNextHop(hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	} else {
		a, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, c := range slices.Concat(s.cluster.Communities, r.Preference.Communities(), r.Holder.Communities(s.cluster.ASN)) {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			plain = append(plain, c.A<<16|c.B)
		}
	}
	if len(plain) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}, nil
}

// Sessions implements [fabric.Speaker], in the order of the cluster's
// reflectors. Before Run all are idle.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	peers := map[string]*api.Peer{}
	if b := s.server(); b != nil {
		err := b.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
			peers[p.GetConf().GetNeighborAddress()] = p
		})
		if err != nil {
			return nil, fmt.Errorf("bgp: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var sessions []fabric.Session
	for _, rr := range s.cluster.Reflectors {
		p := peers[rr.Address.String()]
		s.notes.Counted(rr.Address, p.GetState().GetMessages().GetReceived().GetNotification(), time.Now())
		session := fabric.Session{
			Peer: rr.Name, Address: rr.Address.String(), State: peering.State(p), Families: peering.Negotiated(p),
			Since: s.since[rr.Address.String()], Notification: s.notes.Of(rr.Address), Failure: s.notes.Failure(rr.Address),
		}
		for _, f := range p.GetAfiSafis() {
			if !session.Lacks(peering.FamilyOf(f)) { // GoBGP also counts routes that it would send
				session.Advertised += f.GetState().GetAdvertised()
			}
		}
		sessions = append(sessions, session)
	}
	return sessions, nil
}

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)
