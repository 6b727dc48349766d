// Package hooks is the line between a hypervisor's hook, or the command line, and
// the agent of its node: one line of JSON each way over a unix socket. [Client] is
// the hook's side. [Listen] and [Serve] are the agent's, so that a program which
// embeds the fabric can serve the shipped hooks.
package hooks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// DefaultSocket is the socket of a node's agent.
const DefaultSocket = "/run/vmfabric/agent.sock"

// Version is the version of the line. It grows with every change that an older
// agent must not overlook.
const Version = 1

// The longest lines, in bytes. A guest of the largest size is 1.5 MiB; a list of
// 100,000 ports is some 30 MiB.
const (
	maxRequest = 4 << 20
	maxReply   = 64 << 20
)

// Op names what the agent is to do.
type Op string

// The ops. All of them may be repeated; [Guests] and [Node] say what each promises.
const (
	Wire     Op = "wire"     // bring the guest to [fabric.Wired]
	Live     Op = "live"     // bring the guest to [fabric.Live]
	Started  Op = "started"  // live, unless the guest is arriving by migration
	Withdraw Op = "withdraw" // withdraw its announcement, leave its port
	Remove   Op = "remove"   // bring the guest to [fabric.Absent]
	Expect   Op = "expect"   // a migration to this node was announced; changes nothing
	Starting Op = "starting" // live, for a guest that the agent has to look up
	Ended    Op = "ended"    // withdraw, for such a guest
	Describe Op = "describe" // the guest's description, whether it runs or not
	List     Op = "list"     // the ports, or a part of those of another node
	Status   Op = "status"   // the node's health
	Moves    Op = "moves"    // the reports of moves, of all guests or of the named one
	Sent     Op = "sent"     // to which BGP peers the prefix was sent
	Drain    Op = "drain"    // announce everything as [fabric.Draining], take no new guests
	Undrain  Op = "undrain"  // end the drain
	// Forwarding tests whether packets of guests pass the node now.
	Forwarding Op = "forwarding"
	Addresses  Op = "addresses" // what the registry knows
	Allocate   Op = "allocate"  // give the guest its addresses before it starts
	Reserve    Op = "reserve"   // keep the prefix for something that the operator knows
	Release    Op = "release"   // end the allocation of the prefix, or all of the guest with that identity
	Reassign   Op = "reassign"  // give the guest the prefix that another guest has
	Nodes      Op = "nodes"     // the nodes of the cluster
	Explain    Op = "explain"   // where the address of the prefix is on its way from the pool to the reflectors
	Import     Op = "import"    // compare what all guests have with the registry, and record it
	// AdoptRegistry asks what a registry has that was restored or replaced; with Write it
	// is the right one from now on.
	AdoptRegistry Op = "adopt-registry"
	Traffic       Op = "traffic"    // what the node has forwarded for guests
	Blackhole     Op = "blackhole"  // discard packets to the address of the prefix for a time
	Lift          Op = "lift"       // end the blackhole of the prefix
	Blackholes    Op = "blackholes" // the blackholes of the node
)

var (
	guestOps = []Op{Wire, Live, Started, Withdraw, Remove, Expect, Starting, Ended, Describe, Allocate, Reassign}
	nodeOps  = []Op{List, Status, Moves, Sent, Drain, Undrain, Forwarding, Addresses, Reserve, Release, Nodes, Explain, Import, AdoptRegistry, Traffic, Blackhole, Lift, Blackholes}
)

// prefixOps are the ops that need a prefix.
var prefixOps = []Op{Sent, Reserve, Reassign, Explain, Blackhole, Lift}

// Request is the line to the agent. Withdraw, Remove, Expect and Describe need only
// the name of VM. Starting and Ended need the name that the hypervisor has for it,
// and the source's name in Origin. Moves takes the name, if any; the other node ops
// need no VM. Sent, Reserve, Reassign, Explain, Blackhole and Lift need the prefix, Release needs the
// prefix or the guest, Reassign the name of the guest that is to get it.
type Request struct {
	V  int       `json:"v"` // set by [Client.Call]
	Op Op        `json:"op"`
	VM fabric.VM `json:"vm,omitzero"`

	Prefix netip.Prefix    `json:"prefix,omitzero"`
	Note   string          `json:"note,omitempty"`  // with Reserve, for people
	Guest  fabric.Identity `json:"guest,omitempty"` // with Release
	Now    bool            `json:"now,omitempty"`   // with Release: without a quarantine
	Node   string          `json:"node,omitempty"`  // with List: a part of the ports of that node
	After  string          `json:"after,omitempty"` // with Node: those of the guests after that one
	For    time.Duration   `json:"for,omitempty"`   // with Blackhole: how long, in nanoseconds
	Write  bool            `json:"write,omitempty"` // with Import: record it; with AdoptRegistry: adopt it
}

// Reply is the line back. Ports, Status, Moves and Forwarding answer the ops of
// that name; with a Status, the Error may say what is unknown. Guest answers
// Describe, Advertisements Sent.
type Reply struct {
	V       int                `json:"v"`
	OK      bool               `json:"ok"`
	Error   string             `json:"error,omitempty"`   // one line: the thing, the reason, the way out
	Refused bool               `json:"refused,omitempty"` // the Error is a [fabric.ErrRefused]
	Ports   []fabric.PortEntry `json:"ports,omitzero"`
	Status  *fabric.Status     `json:"status,omitzero"`
	Guest   *Guest             `json:"guest,omitzero"`
	Moves   []fabric.Move      `json:"moves,omitzero"`

	Advertisements []fabric.Advertisement `json:"advertisements,omitzero"`
	Unsupported    bool                   `json:"unsupported,omitempty"` // the Error is an [errors.ErrUnsupported]
	// Forwarding says what blocks guests' packets.
	Forwarding []fabric.ForwardingFault `json:"forwarding,omitzero"`
	// Addresses answers the op of that name; with an Error it has the part that is
	// known. Allocations answers Allocate, Reserve, Release and Reassign.
	Addresses   *fabric.Addresses   `json:"addresses,omitzero"`
	Allocations []fabric.Allocation `json:"allocations,omitzero"`
	// Next, to List with a node, is the guest after which the next part begins; empty:
	// there is none.
	Next string `json:"next,omitempty"`
	// Nodes answers the op of that name; to Release, they are those that did not answer.
	Nodes []string `json:"nodes,omitzero"`
	// Steps answers Explain, Import the op of that name.
	Steps    []fabric.Step    `json:"steps,omitzero"`
	Import   *fabric.Import   `json:"import,omitzero"`
	Adoption *fabric.Adoption `json:"adoption,omitzero"` // answers AdoptRegistry
	// Traffic answers the op of that name; with an Error it is as it was last known.
	Traffic []fabric.Traffic `json:"traffic,omitzero"`
	// Blackholes answers the op of that name, and Blackhole with the one.
	Blackholes []fabric.Blackhole `json:"blackholes,omitzero"`
}

// Guest has what a guest must know of its network.
type Guest struct {
	VM fabric.VM `json:"vm"`
	fabric.Network
}

// replyError is the error in an agent's reply. It is a [fabric.ErrRefused], or an
// [errors.ErrUnsupported], if the reply says so.
type replyError struct {
	text                 string
	refused, unsupported bool
}

func (e *replyError) Error() string { return e.text }
func (e *replyError) Is(target error) bool {
	return e.refused && target == fabric.ErrRefused || e.unsupported && target == errors.ErrUnsupported
}

// decode reads a request. Unknown keys are errors: this agent would not do what
// they ask for.
func decode(line []byte) (Request, error) {
	var head struct {
		V  int `json:"v"`
		Op Op  `json:"op"`
	}
	bad := func(err error) (Request, error) {
		return Request{}, fmt.Errorf(`the request cannot be read (%s); send one line such as {"v":%d,"op":"list"}`, oneline.OfJSON(err), Version)
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return bad(err)
	}
	switch {
	case head.V > Version:
		return Request{}, fmt.Errorf("the hook speaks version %d of the line, this agent %d; upgrade the agent", head.V, Version)
	case head.V < 1:
		return Request{}, fmt.Errorf(`the request has no version; send "v":%d`, Version)
	case !slices.Contains(guestOps, head.Op) && !slices.Contains(nodeOps, head.Op):
		return Request{}, fmt.Errorf("op %.40q is not known; send one of %s, or upgrade the agent", head.Op, opNames())
	}
	var req Request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return bad(err)
	}
	if (slices.Contains(prefixOps, req.Op) || req.Op == Release && req.Guest == "") && !req.Prefix.IsValid() {
		return Request{}, fmt.Errorf(`op %q without a prefix; send "prefix":"203.0.113.10/32" with it`, req.Op)
	}
	if req.VM.Name == "" && slices.Contains(guestOps, req.Op) {
		return Request{}, fmt.Errorf(`op %q without a guest; send "vm":{"name":...} with it`, req.Op)
	}
	return req, nil
}

func opNames() string {
	var names []string
	for _, op := range slices.Concat(guestOps, nodeOps) {
		names = append(names, string(op))
	}
	return strings.Join(names, ", ")
}

// encode returns v as one line.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // errors contain <fabric:nic>
	err := e.Encode(v)
	return b.Bytes(), err
}

var errTooLong = errors.New("line too long")

// readLine reads up to and including the next newline. If the input ends within a
// line, it returns [io.ErrUnexpectedEOF] and not the part.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case len(line) > most:
			return nil, errTooLong
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
