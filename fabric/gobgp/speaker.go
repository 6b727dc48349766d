package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/notifications"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
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
	cfg     Config
	log     *slog.Logger
	learner Learner // nil: the speaker learns nothing

	changed       signal.Signal
	review        signal.Signal // of the peers and of what they sent: see keepPeers
	group         peering.Group
	notifications *notifications.Tracker
	sessions      *sessions
	announcements *announcements
	adjRIBIn      *adjRIBIn
	locRIB        *locRIB
	competitors   *competitors
}

// New makes a speaker, which takes routes but has no sessions before Run. It
// refuses a node that has no address of a reflector's family.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	reflectors := cfg.Cluster.Reflectors
	if err := cfg.reaches(reflectors); err != nil {
		return nil, err
	}
	s := &Speaker{
		cfg: cfg, log: slog.New(slog.DiscardHandler),
		changed: signal.New(), review: signal.New(), notifications: notifications.New(), sessions: newSessions(reflectors), competitors: newCompetitors(reflectors),
	}
	for _, o := range opts {
		o(s)
	}
	s.locRIB = newLocRIB(s.learner, reflectors)
	s.adjRIBIn = newAdjRIBIn(newImportFilter(cfg, s.log), s.locRIB, s.competitors)
	s.announcements = newAnnouncements(cfg, s.log, s.adjRIBIn)
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
	node := s.cfg.Node
	b, err := peering.Serve(ctx, s.notifications.Through(s.log), &s.group, &api.Global{
		Asn: s.cfg.Cluster.ASN, RouterId: fabric.RouterID(node.Address, node.Address6).String(), ListenPort: -1,
	})
	if err != nil {
		return peering.Fault(ctx, err)
	}
	working, end := context.WithCancel(ctx)
	if err = s.open(working, b); err == nil {
		s.keepPeers(working, b)
	}
	s.group.Close()
	end()
	s.locRIB.end()
	err = errors.Join(peering.Fault(ctx, err), peering.Leave(ctx, b))
	s.group.Wait()
	return err
}

// open gives GoBGP the routes that were put, and then its peers.
func (s *Speaker) open(ctx context.Context, b *server.BgpServer) error {
	if err := ownOnly(ctx, b); err != nil {
		return err
	}
	resumed, err := s.announcements.begin(b)
	if err != nil {
		return err
	}
	if err := s.watch(ctx, b); err != nil {
		return err
	}
	for _, rr := range s.sessions.reflectors() {
		if err := s.addPeer(ctx, b, rr, resumed); err != nil {
			return err
		}
	}
	if s.learner != nil {
		s.group.After(ctx, s.cfg.Cluster.Timers.Restart, s.locRIB.settle) // even if a reflector sends no End-of-RIB
	}
	return nil
}

// watch handles the events of the sessions and, in one order with them, the
// updates.
func (s *Speaker) watch(ctx context.Context, b *server.BgpServer) error {
	s.group.Go(func() { s.competitors.deliver(ctx) })
	s.group.Go(func() { s.adjRIBIn.lookUp(ctx, b) })
	callbacks := server.WatchEventMessageCallbacks{OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
		s.peerChanged(ctx, e, at)
	}}
	options := append([]server.WatchOption{server.WatchPeer()}, s.adjRIBIn.watch(&callbacks)...)
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
	out := &api.Policy{Name: peering.ExportName, Statements: []*api.Statement{resend.RejectPlaceholders()}}
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

// peer returns a reflector in GoBGP's terms. If it resumes, the OPEN says so.
func (c Config) peer(rr fabric.RR, resumes bool) *api.Peer {
	t := c.Cluster.Timers
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: rr.Address.String(), PeerAsn: rr.ASN, AuthPassword: rr.Password, Description: rr.Name},
		Timers:    peering.Timers(t),
		Transport: &api.Transport{LocalAddress: c.Node.Source(rr.Address).String(), RemotePort: uint32(rr.Port), TcpMss: peering.Segment},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(t.Restart.Seconds()), DeferralTime: resumeWait,
			// It says "I restarted, and went on forwarding", so that a reflector
			// keeps the routes that it still has.
			LocalRestarting: resumes,
		},
		AfiSafis: peering.BothFamilies(),
	}
	peering.LongLived(p, t)
	switch {
	case rr.GTSM:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	case rr.ASN != c.Cluster.ASN:
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
	s.notifications.State(e.Peer.State, at)
	peer, state := e.Peer.State.NeighborAddress, e.Peer.State.SessionState
	if state == bgp.BGP_FSM_OPENCONFIRM {
		s.sessions.opening(peer, at)
	}
	up := state == bgp.BGP_FSM_ESTABLISHED
	if !s.sessions.update(peer, up) {
		return
	}
	s.review.Send()
	switch {
	case up:
		s.adjRIBIn.sessionUp(peer)
		s.group.Go(func() { s.resend(ctx, peer) })
	case peering.Broke(e):
		s.restBFD(ctx, peer)
	}
	s.changed.Send()
}

// restBFD ends the BFD session with a reflector for a moment, see [peering.Broke].
func (s *Speaker) restBFD(ctx context.Context, peer netip.Addr) {
	reflectors := s.sessions.reflectors()
	i := slices.IndexFunc(reflectors, func(rr fabric.RR) bool { return rr.Address == peer && rr.BFD })
	if i < 0 {
		return
	}
	s.setBFD(ctx, reflectors[i], false)
	s.group.After(ctx, peering.BFDRest, func() { s.setBFD(ctx, reflectors[i], true) })
}

// setBFD turns BFD with a reflector on or off, unless there is a session.
func (s *Speaker) setBFD(ctx context.Context, rr fabric.RR, on bool) {
	s.sessions.whileDown(rr.Address, func() {
		if err := peering.SetBFD(ctx, s.announcements.server(), s.cfg.peer(rr, false), on); err != nil && ctx.Err() == nil {
			s.log.Warn("BFD not changed", "peer", rr.Name, "on", on, "err", err)
		}
	})
}

// resend sends a peer whose session is up everything, and End-of-RIB, and withdraws
// once more what was withdrawn meanwhile (see [resend]).
//
// A resuming GoBGP would hold everything back until the End-of-RIB of all peers, or
// for resumeWait. Until then the routes are stale at the reflector, which must drop
// them at once if that session ends too (RFC 4724, 4.2, consecutive restarts).
func (s *Speaker) resend(ctx context.Context, peer netip.Addr) {
	p := resend.Established(ctx, s.announcements.server(), peer.String())
	if p == nil || ctx.Err() != nil {
		return
	}
	session := s.sessions.resumed(peer)
	if !session.up {
		return
	}
	if p.GetGracefulRestart().GetLocalRestarting() && !session.resuming {
		return // GoBGP sends it everything when its deferral ends
	}
	s.announcements.resend(ctx, peer, session.opens, session.resuming)
}

// Actual implements [fabric.Speaker], in the order of the prefixes.
func (s *Speaker) Actual(context.Context) ([]fabric.Route, error) {
	return s.announcements.all(), nil
}

// Put implements [fabric.Speaker].
func (s *Speaker) Put(_ context.Context, routes ...fabric.Route) error {
	return s.announcements.put(routes)
}

// Remove implements [fabric.Speaker]. In the first second of a restarted speaker's
// session it waits, because GoBGP would not pass the withdrawal on.
func (s *Speaker) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	return s.announcements.remove(ctx, prefixes)
}

// Sessions implements [fabric.Speaker], in the order of the cluster's
// reflectors. Before Run all are idle.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	peers := map[string]*api.Peer{}
	if b := s.announcements.server(); b != nil {
		err := b.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
			peers[p.GetConf().GetNeighborAddress()] = p
		})
		if err != nil {
			return nil, fmt.Errorf("bgp: %w", err)
		}
	}
	var sessions []fabric.Session
	for _, rr := range s.sessions.reflectors() {
		p := peers[rr.Address.String()]
		s.notifications.Counted(rr.Address, p.GetState().GetMessages().GetReceived().GetNotification(), time.Now())
		session := fabric.Session{
			Peer: rr.Name, Address: rr.Address.String(), State: peering.State(p), Families: peering.Negotiated(p),
			Since: s.sessions.of(rr.Address).since, Notification: s.notifications.Of(rr.Address), Failure: s.notifications.Failure(rr.Address),
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
