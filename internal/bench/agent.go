package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// agent is a vmfabric agent on a node of a lab.
type agent struct {
	*core.Daemon
	lab      *lab
	node     *core.Host
	program  string
	socket   string
	lxd      string // the socket of the LXD that it follows; "" for none
	libvirt  string // the socket of the libvirtd that it follows; "" for none
	speaker  string // "" for the cluster's speaker
	file     string // its cluster file; "" for the lab's
	baseline bool   // the program is the baseline's agent
}

// startAgent starts an agent on a node and waits until it is ready.
func (b *bench) startAgent(ctx context.Context, l *lab, node string) (*agent, error) {
	return b.begin(ctx, l, agent{node: l.top.Nodes[node]})
}

// startChanged starts an agent that knows another cluster than the lab's.
func (b *bench) startChanged(ctx context.Context, l *lab, node string, change func(*fabric.Cluster)) (*agent, error) {
	a := agent{node: l.top.Nodes[node]}
	if change != nil {
		a.file = filepath.Join(a.node.Dir(), "changed.yaml")
		if err := changedFile(a.file, l.cluster, change); err != nil {
			return nil, err
		}
	}
	return b.begin(ctx, l, a)
}

// changedFile writes the cluster file of a cluster with a change.
func changedFile(path string, c fabric.Cluster, change func(*fabric.Cluster)) error {
	change(&c)
	return os.WriteFile(path, []byte(core.ClusterFile(c)), 0o600)
}

// newNode makes a lab with so many nodes, and starts the agent of the first. Its caller
// closes the lab.
func (b *bench) newNode(ctx context.Context, name string, nodes int) (*lab, *agent, error) {
	l, err := b.newLab(ctx, name, nodes)
	if err != nil {
		return nil, nil, err
	}
	a, err := b.startAgent(ctx, l, "node1")
	if err != nil {
		return nil, nil, errors.Join(err, l.close())
	}
	return l, a, nil
}

// startFollower starts an agent that follows an LXD.
func (b *bench) startFollower(ctx context.Context, l *lab, node, lxd string) (*agent, error) {
	return b.begin(ctx, l, agent{node: l.top.Nodes[node], lxd: lxd})
}

// startSpeaker starts an agent whose speaker is a daemon of the node.
func (b *bench) startSpeaker(ctx context.Context, l *lab, node, speaker string) (*agent, error) {
	return b.begin(ctx, l, agent{node: l.top.Nodes[node], speaker: speaker})
}

// begin starts an agent and waits until it is ready.
func (b *bench) begin(ctx context.Context, l *lab, a agent) (*agent, error) {
	a.lab, a.program = l, b.bin.vmfabric
	if a.baseline {
		a.program = b.bin.baseline
	}
	a.socket = cmp.Or(a.socket, filepath.Join(a.node.Dir(), "agent.sock"))
	if err := a.start(); err != nil {
		return nil, err
	}
	return &a, a.ready(ctx, 0)
}

// start starts the agent, also after it was stopped or killed.
func (a *agent) start() (err error) {
	file, state := cmp.Or(a.file, a.lab.file), filepath.Join(a.node.Dir(), "state")
	if a.baseline {
		a.Daemon, err = a.node.StartDaemon("baseline", exec.Command(a.program, "--serve", file, a.node.Name(), state, a.socket))
		return err
	}
	cmd := exec.Command(a.program, "agent", "--config", file, "--node", a.node.Name(), "--state", state, "--socket", a.socket,
		"--libvirt", cmp.Or(a.libvirt, "off"), "--lxd", cmp.Or(a.lxd, "off"))
	if a.speaker != "" {
		cmd.Args = append(cmd.Args, "--speaker", a.speaker)
		cmd.Env = append(os.Environ(), "VMFABRIC_BIRD_SOCKET="+filepath.Join(a.node.Dir(), "bird.ctl"),
			"VMFABRIC_FRR_PATHSPACE="+strings.ReplaceAll(a.node.Namespace(), ".", "_"))
	}
	a.Daemon, err = a.node.StartDaemon("agent", cmd)
	return err
}

// ready waits until the agent is healthy, with both its sessions up, and has that
// many live ports.
func (a *agent) ready(ctx context.Context, live int) error {
	return a.until(ctx, func(st fabric.Status) error {
		if !st.Healthy || st.Live != live || len(st.Sessions) != 2 {
			return fmt.Errorf("%d of %d live, %d of 2 sessions, problems %v", st.Live, live, len(st.Sessions), st.Problems)
		}
		return nil
	})
}

// adopted waits until the agent answers and has that many live ports, whatever the
// state of its sessions.
func (a *agent) adopted(ctx context.Context, live int) error {
	return a.until(ctx, func(st fabric.Status) error {
		if st.Live != live {
			return fmt.Errorf("%d of %d live", st.Live, live)
		}
		return nil
	})
}

// until waits until pass accepts the agent's status.
func (a *agent) until(ctx context.Context, pass func(fabric.Status) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var why error
	for {
		reply, err := hooks.Client{Socket: a.socket}.Call(ctx, hooks.Request{Op: hooks.Status})
		if err == nil {
			err = pass(*reply.Status)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // else it says only that there is no more time
			why = err
		}
		select {
		case <-tick.C:
		case <-a.Done():
			return fmt.Errorf("the agent ended: %s", a.Log())
		case <-ctx.Done():
			return fmt.Errorf("the agent is not ready: %w", why)
		}
	}
}

// ask sends one request over a connection of its own, as a hook does. Its time runs
// from just before the line is written.
func (a *agent) ask(ctx context.Context, op hooks.Op, vm fabric.VM) (span, error) {
	line, err := json.Marshal(hooks.Request{V: hooks.Version, Op: op, VM: vm})
	if err != nil {
		return span{}, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", a.socket)
	if err != nil {
		return span{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	line = append(line, '\n')
	began := time.Now()
	if _, err := conn.Write(line); err != nil {
		return span{}, err
	}
	answer, err := bufio.NewReader(conn).ReadBytes('\n')
	x := since(began)
	if err != nil {
		return x, err
	}
	var reply hooks.Reply
	if err := json.Unmarshal(answer, &reply); err != nil {
		return x, err
	}
	if !reply.OK {
		return x, errors.New(reply.Error)
	}
	return x, nil
}

// askAll sends a request for each guest, atOnce at a time, and returns how long
// each took.
func (a *agent) askAll(ctx context.Context, op hooks.Op, gs []guest, atOnce int) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	took, errs := make(sample, len(gs)), make([]error, len(gs))
	for i, g := range gs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			// The shipped client tries again while the queue of connections is
			// full.
			_, errs[i] = hooks.Client{Socket: a.socket}.Call(ctx, hooks.Request{Op: op, VM: g.vm(fabric.Tap)})
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

// method is the agent as a way to bring guests up and down.
func (a *agent) method(name string) *method {
	ask := func(op hooks.Op) func(context.Context, guest) (span, error) {
		return func(ctx context.Context, g guest) (span, error) { return a.ask(ctx, op, g.vm(fabric.Tap)) }
	}
	return &method{name: name, up: ask(hooks.Live), down: ask(hooks.Remove)}
}
