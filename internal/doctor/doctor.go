// Package doctor looks at a node for what keeps the fabric from working, or would after
// the next boot: before an agent is there, and beside one. What the agent's status, its
// backends or the cluster file's reader have a sentence for, it says by that sentence.
//
// The checks are one list of values ([Names]). Each reads something, and decides by a
// function of what it has read. What is in files, those of /proc among them, is read
// below [Config.Root].
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// State is how a finding counts.
type State string

// The states of a finding. Only Wrong makes a node unfit.
const (
	Good    State = "good"
	Note    State = "note"    // worth to know, and right as it is
	Unknown State = "unknown" // could not be looked at
	Wrong   State = "wrong"
)

// Finding is what a check found.
type Finding struct {
	Check   string `json:"check"`
	State   State  `json:"state"`
	What    string `json:"what"`
	Why     string `json:"why,omitempty"` // why it matters
	WayOut  string `json:"way_out,omitempty"`
	Fixable bool   `json:"fixable,omitempty"` // [Report.Fix] mends it

	fix func() error
}

// Report has all findings, in the order of the checks.
type Report struct {
	Cluster  string    `json:"cluster,omitempty"`
	Node     string    `json:"node,omitempty"`
	Healthy  bool      `json:"healthy"` // nothing is wrong
	Findings []Finding `json:"findings"`
	Mended   []string  `json:"mended,omitempty"` // what was wrong before
}

// Config says what to look at, and how.
type Config struct {
	Root     string // the root directory, "/"
	File     string // the cluster file
	Socket   string // the agent's socket
	StateDir string // of the agent
	Settings string // the sysctl file of the package, as it is to be below /etc/sysctl.d
	// Libvirt and Hooks are the socket of libvirtd or virtqemud (empty: the usual ones)
	// and the directory of its hooks.
	Libvirt, Hooks string
	// NoLibvirt: the node is to follow no libvirt.
	NoLibvirt bool
	// ThisNode finds this node in a cluster; running is the name of the node whose agent
	// runs here, empty without one. Kernel says how its agent uses the kernel.
	ThisNode func(c *fabric.Cluster, running string) (fabric.Node, error)
	Kernel   func(*fabric.Cluster, fabric.Node) kernel.Config
	// Features tries in a network namespace of its own what a node needs of its kernel,
	// see [kernel.ProbeFeatures].
	Features func(context.Context) (kernel.Probed, error)
}

// check is one thing to look at.
type check struct {
	name string
	why  string // why its findings matter
	good string // what is so when it finds nothing
	look func(context.Context, *examination) []Finding
}

// examination is what the checks have in common. They read it at the same time.
type examination struct {
	Config
	root

	cluster *fabric.Cluster // nil: not known
	loading error           // why it is not
	node    fabric.Node
	noNode  error // why node is not known

	status *fabric.Status // of the agent; nil: none answers
	silent error          // why it is nil

	survey *kernel.Survey
	source map[bool]bool // by v6: this machine has the node's address

	greeted func() map[string]greeted // once, for all who ask
}

type greeted struct {
	nodes.Greeting
	err error
}

// Names lists the checks.
func Names() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// Examine makes the checks of these names; without names, all.
func Examine(ctx context.Context, cfg Config, names ...string) (Report, error) {
	e, err := begin(ctx, cfg)
	if err != nil {
		return Report{}, err
	}
	defer e.survey.Close()
	var report Report
	if e.cluster != nil {
		report.Cluster, report.Node = e.cluster.Name, e.node.Name
	}
	all := checks()
	found := make([][]Finding, len(all))
	var looking sync.WaitGroup
	for i, c := range all {
		if len(names) == 0 || slices.Contains(names, c.name) {
			looking.Go(func() { found[i] = c.findings(ctx, e) })
		}
	}
	looking.Wait()
	if ctx.Err() != nil {
		return report, fmt.Errorf("not all was looked at: %w", ctx.Err())
	}
	report.Findings = distinct(slices.Concat(found...))
	report.Healthy = !slices.ContainsFunc(report.Findings, func(f Finding) bool { return f.State == Wrong })
	return report, nil
}

// Fix mends what is the fabric's own, and describes what it mended.
func (r Report) Fix() (mended []string, err error) {
	var errs []error
	for _, f := range r.Findings {
		if f.fix == nil {
			continue
		}
		if err := f.fix(); err != nil {
			errs = append(errs, fmt.Errorf("%s: not mended: %w", f.What, err))
			continue
		}
		mended = append(mended, f.Check+": "+f.What)
	}
	return mended, errors.Join(errs...)
}

// begin reads what the checks have in common.
func begin(ctx context.Context, cfg Config) (*examination, error) {
	e := &examination{Config: cfg, root: root(cfg.Root), source: map[bool]bool{}}
	e.askAgent(ctx)
	c, err := clusterfile.Load(cfg.File)
	if err == nil {
		running := ""
		if e.status != nil && e.status.Role == "" {
			running = e.status.Node
		}
		e.cluster = &c
		e.node, e.noNode = cfg.ThisNode(&c, running)
	}
	e.loading = err
	if e.loading != nil {
		e.noNode = errors.New("the cluster is not known")
	}
	surveyed := outside()
	if e.cluster != nil {
		surveyed = cfg.Kernel(e.cluster, e.node)
	}
	if e.survey, err = kernel.NewSurvey(surveyed); err != nil {
		return nil, err
	}
	for _, a := range machineAddresses() {
		e.source[false] = e.source[false] || a == e.node.Address
		e.source[true] = e.source[true] || a == e.node.Address6
	}
	e.greeted = sync.OnceValue(func() map[string]greeted { return e.greet(ctx) })
	return e, nil
}

// outside is the configuration of a node of which no cluster file says anything: the
// links to the Internet are its underlay. Whether guests are to have IPv6 is not known.
func outside() kernel.Config {
	return kernel.Config{
		Underlay: []netip.Addr{netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30")},
		Samples:  []netip.Addr{netip.MustParseAddr("203.0.113.254")},
	}
}

// agentWait bounds how long the agent may take to answer: its status waits for others.
const agentWait = 10 * time.Second

func (e *examination) askAgent(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, agentWait)
	defer cancel()
	reply, err := hooks.Call(ctx, e.Socket, hooks.Request{Op: hooks.Status})
	if e.status = reply.Status; e.status == nil {
		e.silent = err
	}
}

// runs reports whether an agent runs, as far as that can be seen.
func (e *examination) runs() bool { return e.status != nil || !errors.Is(e.silent, hooks.ErrNoAgent) }

// from returns the node's address of the family of peer, and whether this machine has it.
func (e *examination) from(peer netip.Addr) (netip.Addr, bool) {
	a := e.node.Source(peer)
	return a, a.IsValid() && e.source[a.Is6()]
}

// findings makes a check.
func (c check) findings(ctx context.Context, e *examination) []Finding {
	all := c.look(ctx, e)
	for i := range all {
		f := &all[i]
		f.Check, f.Fixable = c.name, f.fix != nil
		if f.State == Wrong && f.Why == "" {
			f.Why = c.why
		}
	}
	if len(all) == 0 && c.good != "" {
		return []Finding{{Check: c.name, State: Good, What: c.good}}
	}
	return all
}

// distinct drops what a check before has said already, and a note of what another check
// calls wrong.
func distinct(all []Finding) []Finding {
	said, wrong := map[string]bool{}, map[string]bool{}
	for _, f := range all {
		wrong[f.What] = wrong[f.What] || f.State == Wrong
	}
	return slices.DeleteFunc(all, func(f Finding) bool {
		if f.State == Note && wrong[f.What] {
			return true
		}
		again := said[f.What]
		said[f.What] = true
		return again
	})
}

// sentence makes a finding of a line as status has it: the thing and the reason, and
// after the first semicolon the way out.
func sentence(state State, text string) Finding {
	what, wayOut, _ := strings.Cut(text, "; ")
	return Finding{State: state, What: what, WayOut: wayOut}
}

func wrong(what, wayOut string) Finding { return Finding{State: Wrong, What: what, WayOut: wayOut} }
func good(format string, args ...any) []Finding {
	return []Finding{{State: Good, What: fmt.Sprintf(format, args...)}}
}
func note(what, wayOut string) Finding { return Finding{State: Note, What: what, WayOut: wayOut} }

// blind says what could not be looked at because the cluster, or the node in it, is not
// known.
func blind(what string) []Finding { return []Finding{{State: Unknown, What: what}} }

// unknown says what could not be looked at for want of rights, or by an error.
func unknown(what string, err error) []Finding {
	wayOut := ""
	if errors.Is(err, fs.ErrPermission) || os.Geteuid() != 0 && err == nil {
		wayOut = "run it as root"
	}
	if err != nil {
		what += ": " + oneline.Of(err.Error())
	}
	return []Finding{{State: Unknown, What: what, WayOut: wayOut}}
}
