package hooks

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Guests changes the state of guests. The agent says what each method promises
// ([github.com/vmfabric/vmfabric/fabric/agent.Agent]). All methods are idempotent
// and serve many requests at a time.
type Guests interface {
	Apply(ctx context.Context, vm fabric.VM, s fabric.State) error
	Started(ctx context.Context, vm fabric.VM) error
	Withdraw(ctx context.Context, vm string) error
	Expect(ctx context.Context, vm string) error
}

// Hypervisors changes the state of guests of which a hook knows only the
// hypervisor's name for them. The agent says what each method promises.
type Hypervisors interface {
	Starting(ctx context.Context, source, name string) error
	Ended(ctx context.Context, source, name string) error
	Describe(ctx context.Context, name string) (fabric.VM, fabric.Network, error)
}

// Node answers requests about the node as a whole.
type Node interface {
	List(ctx context.Context) ([]fabric.PortEntry, error)
	Status(ctx context.Context) (fabric.Status, error)           // with an error: the part that is known
	Moves(ctx context.Context, vm string) ([]fabric.Move, error) // the newest first; without a name those of all guests
	// Advertisements returns to which BGP peers a prefix was sent. The error is
	// [errors.ErrUnsupported] if the speaker cannot tell.
	Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error)
	Drain(ctx context.Context) error
	Undrain(ctx context.Context) error
	CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error)
	Traffic(ctx context.Context) ([]fabric.Traffic, error) // with an error: as it was last known
	Blackhole(ctx context.Context, a netip.Addr, last time.Duration) (fabric.Blackhole, error)
	LiftBlackhole(ctx context.Context, a netip.Addr) error
	Blackholes(ctx context.Context) ([]fabric.Blackhole, error)
}

// Registry answers requests about the addresses of the pools. The agent says what each
// method promises.
type Registry interface {
	Addresses(ctx context.Context) (fabric.Addresses, error) // with an error: the part that is known
	Allocate(ctx context.Context, vm fabric.VM) ([]fabric.Allocation, error)
	Reserve(ctx context.Context, p netip.Prefix, note string) (fabric.Allocation, error)
	Release(ctx context.Context, r fabric.ReleaseRequest) (released []fabric.Allocation, silent []string, err error)
	Reassign(ctx context.Context, p netip.Prefix, to string) ([]fabric.Allocation, error)
	AdoptRegistry(ctx context.Context, really bool) (fabric.Adoption, error)
}

// Cluster answers requests that need the other nodes. The agent says what each method
// promises.
type Cluster interface {
	Nodes(ctx context.Context) ([]string, error)
	ListNode(ctx context.Context, node, after string) (fabric.PortPage, error)
	Explain(ctx context.Context, a netip.Addr) ([]fabric.Step, error)
	Import(ctx context.Context, write bool) (fabric.Import, error)
}

// Agent does what the requests ask for. The agent of package fabric/agent is one.
type Agent interface {
	Guests
	Hypervisors
	Node
	Registry
	Cluster
}

// Reporter reports the status of a program without guests, such as a reflector.
type Reporter interface {
	Status(ctx context.Context) (fabric.Status, error) // with an error: the part that is known
}

const (
	idle  = 10 * time.Second // for a line to arrive, and to write a reply
	grace = 5 * time.Second  // for open requests when the agent stops
)

// Serve answers the requests that arrive at l, each connection's in order, until
// ctx ends, and closes l. It then lets open requests finish, ends their contexts
// after 5 s, waits for them, and returns nil. With a nil logger it logs nothing. A
// panic of the agent ends the process.
func Serve(ctx context.Context, l net.Listener, agent Agent, log *slog.Logger) error {
	return answerAll(ctx, l, log, func(ctx context.Context, req Request) (Reply, error) { return do(ctx, agent, req) })
}

// ServeStatus is [Serve] for a program without guests: it answers Status, and
// refuses all other ops. what names the program, such as "reflector rr1".
func ServeStatus(ctx context.Context, l net.Listener, what string, r Reporter, log *slog.Logger) error {
	return answerAll(ctx, l, log, func(ctx context.Context, req Request) (Reply, error) {
		if req.Op != Status {
			return Reply{}, fmt.Errorf("op %q %w: this is %s, not an agent, and has no guests; ask the agent of a node, on its own socket", req.Op, fabric.ErrRefused, what)
		}
		status, err := r.Status(ctx)
		return Reply{Status: &status}, err
	})
}

func answerAll(ctx context.Context, l net.Listener, log *slog.Logger, do func(context.Context, Request) (Reply, error)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	s := server{do, cmp.Or(log, slog.New(slog.DiscardHandler))}
	var conns sync.WaitGroup
	err := s.accept(ctx, l, func(conn net.Conn) {
		conns.Go(func() { s.converse(ctx, requests, conn) })
	})
	stop()
	l.Close()
	defer time.AfterFunc(grace, cancel).Stop()
	conns.Wait()
	return err
}

type server struct {
	do  func(context.Context, Request) (Reply, error)
	log *slog.Logger
}

// accept passes each connection to serve until ctx ends.
func (s server) accept(ctx context.Context, l net.Listener, serve func(net.Conn)) error {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			serve(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
			// Descriptors and memory get free again; to end the agent would not
			// help.
			s.log.Warn("hook not accepted yet; raise LimitNOFILE of the agent if this stays", "err", err)
			backoff.Sleep(ctx, 100*time.Millisecond)
		default:
			return fmt.Errorf("socket %s: accept: %w", l.Addr(), err)
		}
	}
}

// converse answers the lines of one connection until it or ctx ends. The requests
// run under the context requests, which ends later.
func (s server) converse(ctx, requests context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	r, by := bufio.NewReader(conn), callerOf(conn)
	for {
		conn.SetReadDeadline(time.Now().Add(idle))
		if ctx.Err() != nil { // this deadline may have replaced the one that ends the read
			return
		}
		line, err := readLine(r, maxRequest)
		switch {
		case errors.Is(err, errTooLong):
			send(conn, Reply{}.failed(fmt.Errorf("the request is longer than %d bytes; end it with a newline, or give the guest fewer addresses", maxRequest)))
			return
		case err != nil:
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				s.log.Debug("hook dropped before the end of its line", "err", err)
			}
			return
		}
		if send(conn, s.answer(requests, line, by)) != nil {
			return
		}
	}
}

// send writes a reply within the time idle.
func send(conn net.Conn, reply Reply) error {
	reply.V = Version
	b, err := encode(reply)
	if err != nil {
		b, _ = encode(Reply{V: Version}.failed(fmt.Errorf("the reply cannot be written: %w", err)))
	}
	conn.SetWriteDeadline(time.Now().Add(idle))
	_, err = conn.Write(b)
	return err
}

func (r Reply) failed(err error) Reply {
	r.OK, r.Error, r.Refused = false, oneline.Of(err.Error()), errors.Is(err, fabric.ErrRefused)
	r.Unsupported = errors.Is(err, errors.ErrUnsupported)
	return r
}

// answer answers a line of a caller.
func (s server) answer(ctx context.Context, line []byte, by caller) Reply {
	req, err := decode(line)
	if err != nil {
		s.log.Warn("request not understood", "err", err)
		return Reply{}.failed(err)
	}
	began := time.Now()
	reply, err := s.do(ctx, req)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w; the agent was stopped meanwhile, ask again when it is up", err)
	}
	took := time.Since(began)
	if req.changes() {
		s.audit(ctx, req, by, took, err)
	}
	log := s.log.With("op", string(req.Op), "vm", req.VM.Name, "took", took)
	switch {
	case err == nil:
		log.Debug("request done")
	case !req.changes(): // else the audit log has it
		log.Warn("request not done", "err", err)
	}
	if err != nil {
		return reply.failed(err)
	}
	reply.OK = true
	return reply
}

// do passes a request to the agent.
func do(ctx context.Context, agent Agent, req Request) (reply Reply, err error) {
	vm := req.VM
	switch req.Op {
	case Wire:
		err = agent.Apply(ctx, vm, fabric.Wired)
	case Live:
		err = agent.Apply(ctx, vm, fabric.Live)
	case Remove:
		err = agent.Apply(ctx, vm, fabric.Absent)
	case Started:
		err = agent.Started(ctx, vm)
	case Withdraw:
		err = agent.Withdraw(ctx, vm.Name)
	case Expect:
		err = agent.Expect(ctx, vm.Name)
	case Starting:
		err = agent.Starting(ctx, vm.Origin, vm.Name)
	case Ended:
		err = agent.Ended(ctx, vm.Origin, vm.Name)
	case Describe:
		reply.Guest = &Guest{}
		reply.Guest.VM, reply.Guest.Network, err = agent.Describe(ctx, vm.Name)
	case List:
		reply.Ports, reply.Next, err = list(ctx, agent, req)
	case Status:
		var status fabric.Status
		status, err = agent.Status(ctx)
		reply.Status = &status
	case Moves:
		reply.Moves, err = agent.Moves(ctx, vm.Name)
	case Sent:
		reply.Advertisements, err = agent.Advertisements(ctx, req.Prefix)
	case Drain:
		err = agent.Drain(ctx)
	case Undrain:
		err = agent.Undrain(ctx)
	case Addresses:
		var known fabric.Addresses
		known, err = agent.Addresses(ctx)
		reply.Addresses = &known
	case Allocate:
		reply.Allocations, err = agent.Allocate(ctx, vm)
	case Reserve:
		var reserved fabric.Allocation
		if reserved, err = agent.Reserve(ctx, req.Prefix, req.Note); err == nil {
			reply.Allocations = []fabric.Allocation{reserved}
		}
	case Release:
		reply.Allocations, reply.Nodes, err = agent.Release(ctx, fabric.ReleaseRequest{Guest: req.Guest, Prefix: req.Prefix, Now: req.Now})
	case AdoptRegistry:
		var adoption fabric.Adoption
		if adoption, err = agent.AdoptRegistry(ctx, req.Write); err == nil {
			reply.Adoption = &adoption
		}
	case Forwarding:
		reply.Forwarding, err = agent.CheckForwarding(ctx)
	case Traffic:
		reply.Traffic, err = agent.Traffic(ctx)
	case Blackhole:
		var b fabric.Blackhole
		if b, err = agent.Blackhole(ctx, req.Prefix.Addr(), req.For); err == nil {
			reply.Blackholes = []fabric.Blackhole{b}
		}
	case Lift:
		err = agent.LiftBlackhole(ctx, req.Prefix.Addr())
	case Blackholes:
		reply.Blackholes, err = agent.Blackholes(ctx)
	case Reassign:
		reply.Allocations, err = agent.Reassign(ctx, req.Prefix, vm.Name)
	case Nodes:
		reply.Nodes, err = agent.Nodes(ctx)
	case Explain:
		reply.Steps, err = agent.Explain(ctx, req.Prefix.Addr())
	case Import:
		var is fabric.Import
		is, err = agent.Import(ctx, req.Write)
		reply.Import = &is
	}
	return reply, err
}

// list lists the ports of this node, or a part of those of the one that is named.
func list(ctx context.Context, agent Agent, req Request) (ports []fabric.PortEntry, next string, err error) {
	if req.Node == "" {
		ports, err = agent.List(ctx)
		return ports, "", err
	}
	part, err := agent.ListNode(ctx, req.Node, req.After)
	return part.Ports, part.Next, err
}
