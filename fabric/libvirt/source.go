package libvirt

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// defaultSockets are the sockets of libvirt: of the QEMU driver's own daemon, or of
// the one daemon of older installations.
var defaultSockets = []string{"/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"}

// Config has the options of a [Source]; its zero value serves.
type Config struct {
	// Socket is the socket of libvirtd or virtqemud; empty: the first of
	// /run/libvirt/virtqemud-sock and /run/libvirt/libvirt-sock that answers.
	Socket string
	Logger *slog.Logger // nil: no log
	// Hooks is the directory of libvirtd's hooks, see [DefaultHooks]: Diagnose
	// reports if libvirtd does not know the fabric's. Empty: it does not check
	// that.
	Hooks string
	// Proof is a file in which the source notes that a libvirtd knows the hook:
	// after the hook's file is replaced, nothing else shows that. Empty: no file.
	Proof string
}

// Source follows the domains of one libvirtd. [Source.Run] holds the connection;
// all methods are safe for concurrent use.
type Source struct {
	queue  *hypervisor.Queue
	daemon *hypervisor.Daemon[*conn]

	mu sync.Mutex // guards the fields below
	view
	hooks, proof string
	hookCalled   time.Time
	proven       string // the libvirtd that is known to know the hook
}

var (
	_ fabric.Source    = (*Source)(nil)
	_ fabric.Diagnoser = (*Source)(nil)
)

// view is what a source knows of the active domains. It has no lock: its owner has.
type view struct {
	log        *slog.Logger
	known      map[golibvirt.UUID]*observed
	begun      map[golibvirt.UUID]int32  // libvirt's id of a life whose start event came
	foreign    map[golibvirt.UUID]bool   // active, and not of the fabric
	conditions map[golibvirt.UUID]string // the faults of the fabric's domains
}

// observed is a guest of the fabric as it was last seen running. Without NICs its
// <fabric:vm> was removed meanwhile.
type observed struct {
	vm fabric.VM
	as standing
	id int32 // libvirt's id, another with each start
	at time.Time
}

// New makes a source, which does not connect before Run.
func New(cfg Config) *Source {
	sockets := defaultSockets
	if cfg.Socket != "" {
		sockets = []string{cfg.Socket}
	}
	s := &Source{queue: hypervisor.NewQueue(), hooks: cfg.Hooks, proof: cfg.Proof, proven: recallProof(cfg.Proof), view: view{
		log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), known: map[golibvirt.UUID]*observed{}, begun: map[golibvirt.UUID]int32{},
		foreign: map[golibvirt.UUID]bool{}, conditions: map[golibvirt.UUID]string{},
	}}
	s.daemon = hypervisor.NewDaemon(hypervisor.Config[*conn]{
		Name: domxml.Origin, Sockets: sockets, Logger: s.log, Queue: s.queue,
		Dial: s.connect, Unreachable: unreachable,
		// Note that libvirtd knows the hook before the hook is replaced.
		Connected: func(c *conn) { s.hookProblem(c) },
	})
	return s
}

// unreachable says why libvirtd does not answer on a socket.
func unreachable(socket string, err error) *hypervisor.Unreachable {
	e := hypervisor.NewUnreachable(domxml.Origin, daemonOf(socket), socket, err)
	if errors.Is(err, errHooks) {
		e.Remedy = "look for hooks that hang"
	}
	return e
}

// Name implements [fabric.Source].
func (s *Source) Name() string { return domxml.Origin }

// Changes implements [fabric.Source]. If the agent has not taken a guest's change
// yet, a newer one replaces it. The first change after each connect has Lost set.
// The channel is never closed.
func (s *Source) Changes() <-chan fabric.Change { return s.queue.Out() }

// Run connects, and connects again whenever the connection is lost, until ctx ends;
// then it returns nil. If there never was a libvirt, it waits without a warning.
// Call it once.
func (s *Source) Run(ctx context.Context) error { return s.daemon.Run(ctx) }

// Guests implements [fabric.Source]: the active domains of the fabric, with the
// time at which the state was read in Since, and the names of all others. Without
// Run it uses a connection of its own. It waits at most 10 s: libvirt does not list
// its domains while a hook runs. If a domain's <fabric:vm> cannot be read, Guests
// lists the domain as it was last readable, or only by its name, and Diagnose
// reports it.
func (s *Source) Guests(ctx context.Context) ([]fabric.Desired, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	guests, err := s.list(ctx, c)
	if errors.Is(err, hypervisor.ErrTimeout) {
		return nil, fmt.Errorf("libvirt: list domains: no answer on %s in %v; look for a hook that hangs, or restart libvirtd",
			c.path, time.Since(began).Round(time.Millisecond))
	}
	if err != nil {
		return nil, fmt.Errorf("libvirt: list domains: %w; the agent asks again", err)
	}
	return guests, nil
}

// MovesByRestart implements [fabric.Source]: libvirt says when a guest begins to
// run.
func (*Source) MovesByRestart() bool { return false }

// Status implements [fabric.Source].
func (s *Source) Status() fabric.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon.Status(len(s.known))
}

// Diagnose implements [fabric.Diagnoser]. A missing libvirt is no problem on a node
// that never had one.
func (s *Source) Diagnose(context.Context) []string {
	var problems []string
	c, connected := s.daemon.Conn()
	if connected {
		if text := s.hookProblem(c); text != "" {
			problems = append(problems, text)
		}
	}
	if text := s.daemon.Condition(); text != "" {
		problems = append(problems, text)
	}
	if connected {
		problems = append(problems, c.diagnose(s.daemon.Times.Call)...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range slices.Sorted(maps.Values(s.conditions)) {
		problems = append(problems, "libvirt: "+text)
	}
	return problems
}

// list asks for all guests. It waits while another list on the connection has no
// answer.
func (s *Source) list(ctx context.Context, c *conn) ([]fabric.Desired, error) {
	select {
	case c.lists <- struct{}{}:
	case <-c.raw.gone:
		return nil, c.raw.why
	case <-ctx.Done():
		return nil, hypervisor.Reason(ctx.Err())
	}
	answer := make(chan []fabric.Desired, 1)
	err := c.call(ctx, question{about: "all domains"}, func() error {
		defer func() { <-c.lists }()
		guests, err := s.readAll(c)
		answer <- guests
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-answer, nil
}

// readAll reads all active domains, and forgets those that are no longer active.
func (s *Source) readAll(c *conn) ([]fabric.Desired, error) {
	began := time.Now()
	domains, _, err := c.lv.ConnectListAllDomains(1, golibvirt.ConnectListDomainsActive)
	if err != nil {
		return nil, err
	}
	var guests []fabric.Desired
	active := map[golibvirt.UUID]bool{}
	for _, dom := range domains {
		active[dom.UUID] = true
		d, ours, err := s.look(c, dom, true)
		switch {
		case isNoDomain(err):
		case err != nil:
			return nil, err
		case ours && d.State != fabric.Absent:
			guests = append(guests, d)
		case !ours:
			// It runs, and nothing says with which addresses. If the agent knows it
			// as a guest, the guest must not count as gone.
			guests = append(guests, fabric.Desired{VM: bare(dom), Run: runOf(dom)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.known, func(u golibvirt.UUID, k *observed) bool { return !active[u] && k.at.Before(began) })
	maps.DeleteFunc(s.begun, func(u golibvirt.UUID, _ int32) bool { return !active[u] })
	maps.DeleteFunc(s.foreign, func(u golibvirt.UUID, _ bool) bool { return !active[u] })
	maps.DeleteFunc(s.conditions, func(u golibvirt.UUID, _ string) bool { return !active[u] })
	return guests, nil
}

// bare returns a domain of which only the name and the UUID are known.
func bare(dom golibvirt.Domain) fabric.VM {
	u := dom.UUID
	return fabric.VM{Name: dom.Name, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), Origin: domxml.Origin}
}

// runOf names a run of a domain by libvirt's id of it.
func runOf(dom golibvirt.Domain) string {
	if dom.ID <= 0 {
		return ""
	}
	return strconv.Itoa(int(dom.ID))
}

// look reads a domain and remembers it. It reads the XML of a known guest again
// only if fresh: the state alone is quicker.
func (s *Source) look(c *conn, dom golibvirt.Domain, fresh bool) (d fabric.Desired, ours bool, err error) {
	s.mu.Lock()
	last, life := s.known[dom.UUID], s.begun[dom.UUID]
	s.mu.Unlock()
	if last == nil || fresh {
		if d.VM, ours, err = s.readVM(c, dom, last); !ours || err != nil {
			return d, false, err
		}
	} else {
		d.VM = last.vm
	}
	d.Since = time.Now()
	state, reason, err := c.lv.DomainGetState(dom, 0)
	if err != nil {
		return d, false, err
	}
	var was standing
	switch {
	case last != nil && last.id == dom.ID:
		was = last.as
	case life == dom.ID: // never 0; its start event came, and it has not run here yet
		was = standing{state: fabric.Wired}
	case needsSide(state, reason):
		if was, err = askSide(c, dom, reason); err != nil {
			return d, false, err
		}
	}
	as := stateOf(state, reason, was)
	d.State, d.Leaving, d.Run = as.state, as.leaving, runOf(dom)
	s.remember(dom, d)
	return d, true, nil
}

// remember notes the state of a guest, unless a newer one is known. A guest that
// was read as stopped stays known until that is emitted: a transient one cannot be
// read again.
func (s *Source) remember(dom golibvirt.Domain, d fabric.Desired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.known[dom.UUID]; d.State != fabric.Absent && (last == nil || !last.at.After(d.Since)) {
		s.known[dom.UUID] = &observed{vm: d.VM, as: standing{d.State, d.Leaving}, id: dom.ID, at: d.Since}
	}
}

// readVM reads a domain's XML. If a known guest's <fabric:vm> has a fault, readVM
// returns the guest as it was; a domain that never had a valid one is not of the
// fabric, but its fault is remembered. A known guest whose <fabric:vm> was removed
// while it runs is returned without NICs.
func (s *Source) readVM(c *conn, dom golibvirt.Domain, last *observed) (vm fabric.VM, ours bool, err error) {
	xml, err := c.lv.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return vm, false, err
	}
	var domain domxml.Domain
	var flaw error
	if domxml.MayBeOurs([]byte(xml)) {
		domain, flaw = domxml.Parse(bytes.NewReader([]byte(xml)))
	}
	if domain.Ours {
		vm = domain.VM()
		flaw = cmp.Or(domain.Plugged(), vm.Validate())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setCondition(dom, flaw)
	switch {
	case domain.Ours && flaw == nil:
		return vm, true, nil
	case flaw == nil && last != nil && last.id == dom.ID:
		vm = last.vm
		vm.NICs = nil
		return vm, true, nil
	case flaw == nil:
		s.foreign[dom.UUID] = true
		delete(s.known, dom.UUID)
	case last != nil:
		return last.vm, true, nil
	}
	return vm, false, nil
}

// setCondition sets the fault of a domain, and logs a new one; nil: it has none.
func (v *view) setCondition(dom golibvirt.Domain, flaw error) {
	if flaw == nil {
		delete(v.conditions, dom.UUID)
		return
	}
	text := oneline.Of(flaw.Error())
	if !strings.HasPrefix(text, "domain ") {
		text = fmt.Sprintf("domain %s: %s", dom.Name, text)
	}
	if v.conditions[dom.UUID] != text {
		v.log.Warn("domain not as the fabric needs it", "vm", dom.Name, "err", text)
	}
	v.conditions[dom.UUID] = text
}
