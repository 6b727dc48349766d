package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vmfabric/vmfabric/fabric"
	"golang.org/x/sys/unix"
)

// tableName is our nftables table. No other table is touched.
const tableName = "vmfabric"

// ensureSourceChecks drops what comes in from a port with a source that is not
// routed to that port (BCP 38, by a lookup in the routing table, so that it
// costs nothing per guest). IPv4 has it also as rp_filter, which the host's
// own setting of conf.all can loosen; IPv6 has no such sysctl. It does nothing
// when the rules are there.
//
//	table inet vmfabric {
//	  chain sources {
//	    type filter hook prerouting priority raw;
//	    iifgroup 147 meta nfproto ipv4 ip saddr != 0.0.0.0 fib saddr . iif oif 0 counter drop
//	    iifgroup 147 meta nfproto ipv6 ip6 saddr != :: ip6 saddr != fe80::/10 fib saddr . iif oif 0 counter drop
//	  }
//	}
//
// The unspecified source is of guests that have no address yet, the
// link-local one of those that speak to their gateway; neither is forwarded.
func ensureSourceChecks() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	if t, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet); err == nil && t != nil {
		rules, err := c.GetRules(t, &nftables.Chain{Name: "sources", Table: t})
		if err == nil && len(rules) == 2 {
			return nil
		}
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	// Adding before deleting makes the deletion valid whether or not the table
	// is there; all of it is one transaction.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "sources", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: sourceCheck(unix.NFPROTO_IPV4, 12, make([]byte, 4), nil)})
	linkLocal := append([]byte{0xfe, 0x80}, make([]byte, 14)...)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: sourceCheck(unix.NFPROTO_IPV6, 8, make([]byte, 16), linkLocal)})
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("this kernel lacks a part of nftables (%w)", err)
		}
		return err
	}
	return nil
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
