package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vmfabric/vmfabric/fabric"
	"golang.org/x/sys/unix"
)

// tableName is our nftables table. No other table is touched.
const tableName = "vmfabric"

// ensure drops what comes in from a port with a source that is not
// routed to that port (BCP 38, by a lookup in the routing table, so that it
// costs nothing per guest). IPv4 has it also as rp_filter, which the host's
// own setting of conf.all can loosen; IPv6 has no such sysctl.
//
// A guest that is about to arrive is not routed to its port by the main table,
// and may begin to run before anybody here knows: what it sends from its own
// addresses is let through, by a chain that names them.
//
//	table inet vmfabric {
//	  chain arriving {
//	    iifname "web_net0" ip saddr 203.0.113.10 accept
//	  }
//	  chain sources {
//	    type filter hook prerouting priority raw;
//	    iifgroup 147 jump arriving
//	    iifgroup 147 meta nfproto ipv4 ip saddr != 0.0.0.0 fib saddr . iif oif 0 counter drop
//	    iifgroup 147 meta nfproto ipv6 ip6 saddr != :: ip6 saddr != fe80::/10 fib saddr . iif oif 0 counter drop
//	  }
//	}
//
// The unspecified source is of guests that have no address yet, the
// link-local one of those that speak to their gateway; neither is forwarded.
//
// It does nothing when the rules are there, and arriving is what it was.
func (s *sourceChecks) ensure(arriving map[string][]netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	exempt := &nftables.Chain{Name: "arriving", Table: table}
	same := s.known && maps.EqualFunc(s.arriving, arriving, slices.Equal[[]netip.Prefix])
	there := false
	if t, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet); err == nil && t != nil {
		rules, err := c.GetRules(t, &nftables.Chain{Name: "sources", Table: t})
		there = err == nil && len(rules) == 3
	}
	switch {
	case there && (same || arriving == nil):
		return nil
	case there:
		c.FlushChain(exempt)
	default:
		addSourceChecks(c, table, exempt)
	}
	for _, port := range slices.Sorted(maps.Keys(arriving)) {
		for _, p := range arriving[port] {
			c.AddRule(&nftables.Rule{Table: table, Chain: exempt, Exprs: exemption(port, p)})
		}
	}
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("this kernel lacks a part of nftables (%w)", err)
		}
		return err
	}
	s.arriving, s.known = arriving, arriving != nil
	return nil
}

// sourceChecks knows what it put into our nftables table.
type sourceChecks struct {
	mu       sync.Mutex
	known    bool
	arriving map[string][]netip.Prefix // by port
}

// addSourceChecks makes the table anew.
func addSourceChecks(c *nftables.Conn, table *nftables.Table, exempt *nftables.Chain) {
	// Adding before deleting makes the deletion valid whether or not the table
	// is there; all of it is one transaction.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	c.AddChain(exempt)
	chain := c.AddChain(&nftables.Chain{
		Name: "sources", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(fabric.LinkGroup)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: exempt.Name},
	}})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: sourceCheck(unix.NFPROTO_IPV4, 12, make([]byte, 4), nil)})
	linkLocal := append([]byte{0xfe, 0x80}, make([]byte, 14)...)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: sourceCheck(unix.NFPROTO_IPV6, 8, make([]byte, 16), linkLocal)})
}

// exemption makes the rule that lets a prefix through from a port.
func exemption(port string, p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	size := uint32(p.Addr().BitLen() / 8)
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// sourceCheck makes the rule of one family. The source address is at offset in
// the network header; any and, where given, the /10 of tenBits are let through.
func sourceCheck(family byte, offset uint32, any, tenBits []byte) []expr.Any {
	size := uint32(len(any))
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(fabric.LinkGroup)},
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		load,
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: any},
	}
	if tenBits != nil {
		mask := append([]byte{0xff, 0xc0}, bytes.Repeat([]byte{0}, len(tenBits)-2)...)
		exprs = append(exprs, load,
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, len(mask))},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: tenBits})
	}
	return append(exprs,
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 0)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop})
}
