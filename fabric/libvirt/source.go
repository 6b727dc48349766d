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

// defaultSockets are where libvirt listens: the QEMU driver's own daemon, or the
// one daemon of older installations.
var defaultSockets = []string{"/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"}

// Config is what a [Source] may be told; its zero value serves.
type Config struct {
	// Socket is where libvirtd or virtqemud listens; empty: the first of
	// /run/libvirt/virtqemud-sock and /run/libvirt/libvirt-sock that answers.
	Socket string
	Logger *slog.Logger // nil: silent
	// Hooks is where libvirtd has its hooks, see [DefaultHooks]. Diagnose tells
	// then when it does not know the fabric's. Empty: nobody looks.
	Hooks string
	// Proof is a file in which it is noted that a libvirtd knows the hook: when
	// the hook is replaced, that is all that tells. Empty: it is not kept.
	Proof string
}

// Source follows the domains of one libvirtd. [Source.Run] holds the
// connection; all methods are safe for concurrent use.
type Source struct {
	queue  *hypervisor.Queue
	daemon *hypervisor.Daemon[*conn]

	mu sync.Mutex // of all below
	view
	hooks, proof string
	hookCalled   time.Time
	proven       string // the libvirtd that knows the hook
}

var (
	_ fabric.Source    = (*Source)(nil)
	_ fabric.Diagnoser = (*Source)(nil)
)

// view is what a source knows of the active domains. It has no lock: that is its
// owner's.
type view struct {
	log        *slog.Logger
	known      map[golibvirt.UUID]*observed
	begun      map[golibvirt.UUID]int32  // libvirt's number of a life whose beginning was heard
	foreign    map[golibvirt.UUID]bool   // active, and none of our business
	conditions map[golibvirt.UUID]string // what is wrong with domains of ours
}

// observed is a guest of ours as it was last seen running. One whose
// <fabric:vm> was taken away meanwhile has no NICs.
type observed struct {
	vm fabric.VM
	as standing
	id int32 // libvirt's, another with each start
	at time.Time
}

// New makes a source. It connects to nothing yet.
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
		// That libvirtd knows the hook is noted before the hook is replaced.
		Connected: func(c *conn) { s.hookProblem(c) },
	})
	return s
}

// unreachable says why nobody answers on a socket.
func unreachable(socket string, err error) *hypervisor.Unreachable {
	e := hypervisor.NewUnreachable(domxml.Origin, daemonOf(socket), socket, err)
	if errors.Is(err, errHooks) {
		e.Remedy = "look for hooks that hang"
	}
	return e
}

// Name implements [fabric.Source].
func (s *Source) Name() string { return domxml.Origin }

// Changes implements [fabric.Source]. Changes of one guest that nobody took
// yet are one change, the newest. The first after each connect has Lost set.
// The channel is never closed.
func (s *Source) Changes() <-chan fabric.Change { return s.queue.Out() }

// Run connects, and connects again whenever the connection is lost, until ctx
// ends; then it returns nil. It waits for libvirt quietly where there is none.
// Call it once.
func (s *Source) Run(ctx context.Context) error { return s.daemon.Run(ctx) }

// Guests implements [fabric.Source]: the active domains of ours, each with the
// time at which its state was read in Since, and the names of all others. It works without Run too, over a
// connection of its own. It waits no longer than 10 s: libvirt does not list
// its domains while a hook runs. A domain whose <fabric:vm> cannot be read is
// listed as it was when it could be; if it never could, it is not listed, and
// Diagnose tells.
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

// MovesByRestart implements [fabric.Source]: libvirt says when a guest begins to run.
func (*Source) MovesByRestart() bool { return false }

// Status implements [fabric.Source].
func (s *Source) Status() fabric.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon.Status(len(s.known))
}

// Diagnose implements [fabric.Diagnoser]. That there is no libvirt is no
// problem on a node where there never was one.
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

// list asks for all guests, unless somebody still waits for that answer.
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

// readAll reads all active domains, and forgets those that are not any more.
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
			// It runs, and nobody can say with what: should it be a guest that the
			// agent knows, it must not pass for gone.
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

// bare is a domain of which nothing says what it has.
func bare(dom golibvirt.Domain) fabric.VM {
	u := dom.UUID
	return fabric.VM{Name: dom.Name, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), Origin: domxml.Origin}
}

// runOf names a run of a domain: libvirt numbers them.
func runOf(dom golibvirt.Domain) string {
	if dom.ID <= 0 {
		return ""
	}
	return strconv.Itoa(int(dom.ID))
}

// look reads a domain and remembers what it saw. Unless fresh, the XML of a
// guest that is known is not read again: the state alone is quicker.
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
	case life == dom.ID: // never 0; so far it did not run here
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

// remember notes a guest as it was seen, unless something newer is known by
// now. One that was seen stopped stays known until that was told: a transient
// one cannot be read again.
func (s *Source) remember(dom golibvirt.Domain, d fabric.Desired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.known[dom.UUID]; d.State != fabric.Absent && (last == nil || !last.at.After(d.Since)) {
		s.known[dom.UUID] = &observed{vm: d.VM, as: standing{d.State, d.Leaving}, id: dom.ID, at: d.Since}
	}
}

// readVM reads a domain's XML. A guest whose <fabric:vm> cannot be understood
// is as it was last; one that never could be is not ours, but remembered. One
// that runs as it did and has none any more is still ours, without NICs.
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

// setCondition says what is wrong with a domain of ours, in the log once; nil:
// nothing is.
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
