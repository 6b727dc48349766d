package kernel

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// toTable is FR_ACT_TO_TBL of <linux/fib_rules.h>, which x/sys does not have.
const toTable = 1

// rule makes the kernel look up some packets in a table of the fabric's
// (ip-rule(8)).
//
// The dataplane makes a rule when it first needs it, and leaves it: an empty table
// costs a packet nothing that can be measured. If a rule came and went with each
// move, the kernel would look up every cached route of the node anew, at the moment
// when that matters most.
type rule struct {
	family   uint8
	priority uint32
	iif      string // packets that come in from this link; empty: all
	mark     uint32 // packets of this mark; 0: all
	table    uint32
}

// message asks the kernel to make the rule. If there is one already, the answer is
// EEXIST.
func (r rule) message() netlink.Message {
	return r.request(unix.RTM_NEWRULE, netlink.Create|netlink.Excl)
}

func (r rule) request(typ netlink.HeaderType, flags netlink.HeaderFlags) netlink.Message {
	head := make([]byte, 12) // struct fib_rule_hdr
	head[0], head[4], head[7] = r.family, uint8(r.table), toTable
	return rtnl.Message(typ, netlink.Acknowledge|flags, head, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.FRA_PRIORITY, r.priority)
		ae.Uint32(unix.FRA_TABLE, r.table)
		ae.Uint8(unix.FRA_PROTOCOL, routeProtocol) // Linux 4.17
		if r.iif != "" {
			ae.String(unix.FRA_IIFNAME, r.iif)
		}
		if r.mark != 0 {
			ae.Uint32(unix.FRA_FWMARK, r.mark)
		}
	})
}

// ensureRules makes the rules that are missing.
func (r *socket) ensureRules(rules []rule) error {
	if len(rules) == 0 {
		return nil
	}
	msgs := make([]netlink.Message, len(rules))
	for i := range rules {
		msgs[i] = rules[i].message()
	}
	errs, err := r.Batch(msgs...)
	if err != nil {
		return err
	}
	for i, err := range errs {
		if err == nil || rtnl.Errno(err) == unix.EEXIST {
			continue
		}
		if unknownTo(err, noPolicyRouting...) != nil {
			err = &lackError{policyRules, err}
		}
		return fmt.Errorf("rule of priority %d: %w", rules[i].priority, err)
	}
	return nil
}

// divertedRules returns the rules by which the kernel looks up all packets among
// the diversions.
func (d *Dataplane) divertedRules() []rule {
	var rules []rule
	for _, f := range d.host.families() {
		rules = append(rules, rule{family: f, priority: fabric.DivertedRule, table: fabric.DivertedTable})
	}
	return rules
}

// forgetRoutes6 makes sockets of this machine look up their IPv6 routes anew. For
// IPv4 every new route does that. For IPv6 only a new route in the table of a
// socket's route does, or a change of rules. So forgetRoutes6 adds a second copy of
// a rule for a moment.
func (d *Dataplane) forgetRoutes6() error {
	if !d.host.ipv6 {
		return nil
	}
	r := rule{family: unix.AF_INET6, priority: fabric.DivertedRule, table: fabric.DivertedTable}
	errs, err := d.moves.rtnl.Batch(r.request(unix.RTM_NEWRULE, netlink.Create), r.request(unix.RTM_DELRULE, 0))
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("rule of priority %d: %w", r.priority, err)
	}
	return nil
}

// keepRules makes the rules anew that somebody removed, as a network manager does
// when it starts, if guests that move, or the metadata service, need them.
func (d *Dataplane) keepRules() {
	var err error
	if d.ports.anyIncoming() {
		err = d.host.expectArrivals()
	} else {
		d.conditions.set("underlay", "")
	}
	if d.moves.diverting.Load() {
		err = errors.Join(err, d.moves.rtnl.ensureRules(d.divertedRules()))
	}
	err = errors.Join(err, d.leadToMetadata())
	if err != nil {
		d.conditions.set("rules", fmt.Sprintf("rules of guests that move, or for their metadata: %v; see ip rule", err))
	} else {
		d.conditions.set("rules", "")
	}
}
