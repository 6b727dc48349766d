package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// discardTable is the name of the table that drops packets to blackholes. It is there
// only while there are some, so packets do not pay for it otherwise.
const discardTable = "vmfabric-blackhole"

// discardPriority is that of its chain: before firewalls, which need not see the packets.
const discardPriority nftables.ChainPriority = -150

// Discard implements [fabric.Dataplane]. The kernel itself ends the time of each prefix,
// also while no agent runs. Packets from the guest pass, and those of the node itself to
// it.
func (d *Dataplane) Discard(_ context.Context, all []fabric.Blackhole) error {
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	r := newRuleset(nftables.TableFamilyINet)
	r.table.Name = discardTable
	r.base("forward", nftables.ChainHookForward, nftables.ChainPriorityRef(discardPriority))
	elements := map[string][]nftables.SetElement{}
	for _, f := range []family{ipv4, ipv6} {
		set := "prefixes" + f.digit
		r.set(nftables.Set{Name: set, KeyType: f.address, HasTimeout: true, Timeout: fabric.MaxBlackhole})
		r.add("forward", f.is(), f.in(f.dst, set, false), []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}})
		for _, b := range all {
			left := time.Until(b.Until).Truncate(time.Millisecond)
			if b.Prefix.IsSingleIP() && b.Prefix.Addr().Is4() == (f.size == 4) && left > 0 {
				elements[set] = append(elements[set], nftables.SetElement{Key: b.Prefix.Addr().AsSlice(), Timeout: left})
			}
		}
	}
	there, err := c.ListTableOfFamily(discardTable, nftables.TableFamilyINet)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if len(elements) == 0 {
		if there == nil {
			return nil
		}
		c.DelTable(r.table)
		return c.Flush()
	}
	r.finish()
	if there != nil && d.discards(c, r, all) {
		return nil
	}
	if err := r.rebuild(c); err != nil {
		return err
	}
	for _, s := range r.sets {
		if err := c.SetAddElements(s, elements[s.Name]); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return c.Flush()
}

// discards reports whether the kernel has the rules, and drops packets to these prefixes
// for as long, to within a second.
func (d *Dataplane) discards(c *nftables.Conn, r *ruleset, all []fabric.Blackhole) bool {
	have := map[netip.Prefix]time.Duration{}
	for _, chain := range r.chains {
		rules, err := c.GetRules(r.table, chain)
		if err != nil || len(rules) != len(r.rules[chain.Name]) {
			return false
		}
	}
	for _, s := range r.sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return false
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				have[fabric.HostPrefix(a)] = e.Expires
			}
		}
	}
	for _, b := range all {
		left, there := have[b.Prefix]
		if off := left - time.Until(b.Until); !there || off > time.Second || off < -time.Second {
			return false
		}
		delete(have, b.Prefix)
	}
	return len(have) == 0
}
