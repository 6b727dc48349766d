package kernel

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// Limits of one port. A guest's needs are far below them. They bound the state that
// a guest can make the node keep.
const (
	solicitRate, solicitBurst   = 50, 100 // address resolution packets a second
	neighbourRate, neighbourMax = 20, 32  // new sources of address resolution a minute, and at once
	learnRate, learnBurst       = 20, 64  // new sources a second that are remembered as checked
	requestRate, requestBurst   = 20, 60  // DHCP requests and router solicitations a second
	replyMax                    = fabric.MaxAddresses
	dynamicSize                 = 65536 // elements of a set that packets fill

	learnedFor   = 30 * time.Second // a source is checked anew after that
	neighbourFor = 10 * time.Minute
	meterFor     = 10 * time.Minute // after that time a meter is full again, so it can be forgotten
	pairFor      = 24 * time.Hour   // after the last packet from the underlay to the guest
	flowFor      = 3 * time.Minute  // the same for UDP, of one pair of ports
)

// Numbers of ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861).
var (
	echo4, errors4 = []byte{0, 8}, []byte{3, 11, 12}
	echo6, errors6 = []byte{128, 129}, []byte{1, 2, 3, 4}
	solicitations6 = []byte{solicitation6, 135} // for routers and neighbors
)

const redirect4 = 5 // RFC 792

const (
	solicitation6  = 133 // for a router
	advertisement6 = 136 // of a neighbor
)

// Ports of DHCP servers (RFC 2131, RFC 8415).
const serverPort4, serverPort6 = 67, 547

// family has the differences between IPv4 and IPv6.
type family struct {
	digit        string
	proto        byte // NFPROTO_*
	src, dst     uint32
	size         uint32
	icmp         byte
	quoted       uint32 // offset of the destination in the packet that an ICMP error quotes
	echo, errors []byte
	first        uint32 // octets of an address that the set near4 or near6 compares
	reply        byte   // of echo
	address      nftables.SetDatatype
}

var (
	ipv4 = family{"4", unix.NFPROTO_IPV4, 12, 16, 4, unix.IPPROTO_ICMP, 8 + 16, echo4, errors4, 1, 0, nftables.TypeIPAddr}
	ipv6 = family{"6", unix.NFPROTO_IPV6, 8, 24, 16, unix.IPPROTO_ICMPV6, 8 + 24, echo6, errors6, 2, 129, nftables.TypeIP6Addr}
)

// ruleset is a table as it should be.
type ruleset struct {
	table    *nftables.Table
	chains   []*nftables.Chain
	rules    map[string][]*nftables.Rule // by chain
	sets     []*nftables.Set
	elements map[string][]nftables.SetElement // of sets that packets do not fill
	mark     []byte                           // comment of every rule, with a hash of them all
}

func newRuleset(family nftables.TableFamily) *ruleset {
	return &ruleset{
		table: &nftables.Table{Family: family, Name: tableName},
		rules: map[string][]*nftables.Rule{}, elements: map[string][]nftables.SetElement{},
	}
}

// base adds a base chain, which hooks into the kernel.
func (r *ruleset) base(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) {
	r.chains = append(r.chains, &nftables.Chain{Name: name, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority})
}

// add adds a rule to a chain, and the chain itself if it is missing.
func (r *ruleset) add(chain string, parts ...[]expr.Any) {
	i := slices.IndexFunc(r.chains, func(c *nftables.Chain) bool { return c.Name == chain })
	if i < 0 {
		i = len(r.chains)
		r.chains = append(r.chains, &nftables.Chain{Name: chain, Table: r.table})
	}
	r.rules[chain] = append(r.rules[chain], &nftables.Rule{Table: r.table, Chain: r.chains[i], Exprs: slices.Concat(parts...)})
}

// set adds a set, with a number of its own in the transaction.
func (r *ruleset) set(s nftables.Set, elements ...nftables.SetElement) {
	s.Table, s.ID = r.table, uint32(len(r.sets)+1)
	r.sets = append(r.sets, &s)
	if !s.Dynamic {
		r.elements[s.Name] = elements
	}
}

// dynamic adds a set that packets fill.
func (r *ruleset) dynamic(name string, parts ...nftables.SetDatatype) {
	t, err := nftables.ConcatSetType(parts...)
	if err != nil {
		panic(err) // there are at most five parts
	}
	r.set(nftables.Set{Name: name, KeyType: t, Dynamic: true, HasTimeout: true, Timeout: learnedFor, Size: dynamicSize})
}

// finish marks the rules, so that the filter recognises a table of another version,
// of another configuration or with somebody's changes.
func (r *ruleset) finish() *ruleset {
	h := fnv.New64a()
	for _, c := range r.chains {
		fmt.Fprintln(h, c.Name)
		for _, rule := range r.rules[c.Name] {
			for _, e := range rule.Exprs {
				d, ok := e.(*expr.Dynset)
				if !ok {
					fmt.Fprintf(h, "%T%+v\n", e, e)
					continue
				}
				// What it points to is elsewhere in each process.
				plain := *d
				plain.Exprs = nil
				fmt.Fprintf(h, "%+v\n", plain)
				for _, e := range d.Exprs {
					fmt.Fprintf(h, "%T%+v\n", e, e)
				}
			}
		}
	}
	for _, s := range r.sets {
		fmt.Fprintln(h, s.Name, s.KeyType)
		for _, e := range r.elements[s.Name] {
			fmt.Fprintf(h, "%x %v", e.Key, e.IntervalEnd)
			if e.VerdictData != nil {
				fmt.Fprintf(h, " %+v", *e.VerdictData)
			}
			fmt.Fprintln(h)
		}
	}
	r.mark = userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("vmfabric %x", h.Sum64()))
	for _, rules := range r.rules {
		for _, rule := range rules {
			rule.UserData = r.mark
		}
	}
	return r
}

// rebuild queues on c the removal of the table, if there is one, and its making.
func (r *ruleset) rebuild(c *nftables.Conn) error {
	// Adding before deleting makes the deletion valid whether or not the table
	// is there; all of it is one transaction.
	c.AddTable(r.table)
	c.DelTable(r.table)
	c.AddTable(r.table)
	for _, chain := range r.chains {
		c.AddChain(chain)
	}
	for _, s := range r.sets {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return r.fill(c)
}

// replace queues on c the change of the table was, which is there, into r. Sets that
// packets fill stay as they are, and so do chains that belong to ports: nothing that
// passes now is taken for something new.
func (r *ruleset) replace(c *nftables.Conn, was *ruleset) error {
	for _, chain := range was.chains {
		c.FlushChain(chain)
	}
	for _, chain := range r.chains {
		if !slices.ContainsFunc(was.chains, func(old *nftables.Chain) bool { return old.Name == chain.Name }) {
			c.AddChain(chain)
		}
	}
	for _, s := range r.sets {
		switch {
		case !slices.ContainsFunc(was.sets, func(old *nftables.Set) bool { return old.Name == s.Name }):
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		case isFixed(s):
			c.FlushSet(s)
		}
	}
	if err := r.fill(c); err != nil {
		return err
	}
	for _, chain := range was.chains {
		if !slices.ContainsFunc(r.chains, func(now *nftables.Chain) bool { return now.Name == chain.Name }) {
			c.DelChain(chain)
		}
	}
	for _, s := range was.sets {
		if !slices.ContainsFunc(r.sets, func(now *nftables.Set) bool { return now.Name == s.Name }) {
			c.DelSet(s)
		}
	}
	return nil
}

// fill queues on c the elements of the table's own sets, and its rules.
func (r *ruleset) fill(c *nftables.Conn) error {
	for _, s := range r.sets {
		for some := range slices.Chunk(r.elements[s.Name], elementsAtOnce) {
			if err := c.SetAddElements(s, some); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	for _, chain := range r.chains {
		for _, rule := range r.rules[chain.Name] {
			c.AddRule(rule)
		}
	}
	return nil
}

// isFixed reports whether a set has the elements that its ruleset says: neither packets
// fill it nor ports.
func isFixed(s *nftables.Set) bool {
	return !s.Dynamic && !s.Counter && !slices.Contains([]string{arrivingMap, guardFrom, guardTo}, s.Name)
}

const (
	elementsAtOnce = 1000    // that fit into one netlink message
	answerBuffer   = 4 << 20 // bytes
)

// intact reports whether the kernel has the table as it should be. rules are the marks of
// its rules there, by chain.
func (r *ruleset) intact(c *nftables.Conn, rules map[string][]string) bool {
	for _, chain := range r.chains {
		is := rules[chain.Name]
		if len(is) != len(r.rules[chain.Name]) || slices.ContainsFunc(is, func(mark string) bool { return mark != string(r.mark) }) {
			return false
		}
	}
	for _, s := range r.sets {
		if !isFixed(s) {
			continue
		}
		elements, err := c.GetSetElements(s)
		if err != nil || len(elements) != len(r.elements[s.Name]) {
			return false
		}
	}
	return true
}

// Parts of rules.

func load(base expr.PayloadBase, offset, size, register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size}
}

// firstWord is the first register of four bytes (NFT_REG32_00). Register 1 is the
// first of sixteen bytes, and covers the same four.
const firstWord = 8

// fromPort matches a packet that comes in from a port.
func fromPort() []expr.Any { return groupIs(expr.MetaKeyIIFGROUP) }

func groupIs(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(fabric.LinkGroup)},
	}
}

func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.proto}},
	}
}

// source and destination compare with a prefix.
func (f family) source(op expr.CmpOp, p netip.Prefix) []expr.Any { return f.compare(f.src, op, p) }

func (f family) destination(op expr.CmpOp, p netip.Prefix) []expr.Any {
	return f.compare(f.dst, op, p)
}

func (f family) compare(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	exprs := []expr.Any{load(expr.PayloadBaseNetworkHeader, offset, f.size, 1)}
	if !p.IsSingleIP() {
		exprs = append(exprs, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: f.size,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, f.size),
		})
	}
	return append(exprs, &expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// in matches an address that is in a set; with not, one that is not.
func (f family) in(offset uint32, set string, not bool) []expr.Any {
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, f.size, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: not},
	}
}

// near matches an address that begins like a private or special one; with not, any
// other. It looks at one bit, and spares the other addresses a search in ranges.
func (f family) near(offset uint32, not bool) []expr.Any {
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, f.first, 1),
		&expr.Lookup{SourceRegister: 1, SetName: "near" + f.digit, Invert: not},
	}
}

// global6 has all addresses of IPv6 that are routed in the Internet (RFC 4291, RFC 3587).
var global6 = netip.MustParsePrefix("2000::/3")

// far matches a destination that does not begin like a private or special one. Where none
// of those of IPv6 is a global one, a comparison says so, which the kernel does faster
// than a look-up.
func (f family) far(private []netip.Prefix) []expr.Any {
	if f.size == 4 || slices.ContainsFunc(f.destinations(private), spanOf(global6, nil).overlaps) {
		return f.near(f.dst, true)
	}
	return f.begins(f.dst, expr.CmpOpEq, global6)
}

// underlay matches a source that is a private one. Packets to guests pay for it. Where the
// private ones begin alike, most of them for no more than a comparison, which the kernel
// does faster than a look-up.
func (f family) underlay(private []netip.Prefix) []expr.Any {
	first, its := f.near(f.src, false), f.of(private)
	if len(its) > 0 {
		last := slices.MaxFunc(its, func(a, b span) int { return a.last.Compare(b.last) }).last
		if common := commonBits(its[0].first, last); common >= 8*int(f.first) {
			first = f.begins(f.src, expr.CmpOpEq, netip.PrefixFrom(its[0].first, common))
		}
	}
	return slices.Concat(first, f.in(f.src, "private"+f.digit, false))
}

// commonBits returns how many of the first bits of two addresses are the same, at most
// those of a word.
func commonBits(a, b netip.Addr) int {
	p := netip.PrefixFrom(a, 8*word)
	for p.Bits() > 0 && !p.Contains(b) {
		p = netip.PrefixFrom(a, p.Bits()-1)
	}
	return p.Bits()
}

// begins compares the first bits of an address, at most those of a word, with a prefix.
func (f family) begins(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, word, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: word, Mask: net.CIDRMask(p.Bits(), 8*word), Xor: make([]byte, word)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()[:word]},
	}
}

// word is the number of bytes for which the kernel has shorter code than for more or
// fewer.
const word = 4

// checked matches a source that has lately been found to be routed to the port.
func (f family) checked() []expr.Any {
	return slices.Concat(key(incoming, f.saddr), found("checked"+f.digit))
}

// key loads the parts of a set's key one after the other.
func key(parts ...func(register uint32) (expr.Any, uint32)) []expr.Any {
	var exprs []expr.Any
	word := uint32(firstWord)
	for _, part := range parts {
		e, size := part(word)
		exprs = append(exprs, e)
		word += (size + 3) / 4
	}
	return exprs
}

func incoming(register uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyIIF, Register: register}, 4
}

func header(base expr.PayloadBase, offset, size uint32) func(uint32) (expr.Any, uint32) {
	return func(register uint32) (expr.Any, uint32) { return load(base, offset, size, register), size }
}

func (f family) saddr(r uint32) (expr.Any, uint32) {
	return header(expr.PayloadBaseNetworkHeader, f.src, f.size)(r)
}

func (f family) daddr(r uint32) (expr.Any, uint32) {
	return header(expr.PayloadBaseNetworkHeader, f.dst, f.size)(r)
}

func sport(r uint32) (expr.Any, uint32) { return header(expr.PayloadBaseTransportHeader, 0, 2)(r) }
func dport(r uint32) (expr.Any, uint32) { return header(expr.PayloadBaseTransportHeader, 2, 2)(r) }

func found(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: firstWord, SetName: set}}
}

// remember puts the key into a set for a time. With renew, each packet starts the
// time anew.
func remember(set string, timeout time.Duration, renew bool) []expr.Any {
	op := uint32(unix.NFT_DYNSET_OP_ADD)
	if renew {
		op = unix.NFT_DYNSET_OP_UPDATE
	}
	return []expr.Any{&expr.Dynset{SrcRegKey: firstWord, SetName: set, Operation: op, Timeout: timeout}}
}

// meter matches while a port's packets are within a rate; with over, while they are
// above it.
func meter(set string, rate uint64, unit expr.LimitTime, burst uint32, over bool) []expr.Any {
	return meterBy(incoming, set, rate, unit, burst, over)
}

// meterBy is meter for the port that a part of a key loads.
func meterBy(port func(uint32) (expr.Any, uint32), set string, rate uint64, unit expr.LimitTime, burst uint32, over bool) []expr.Any {
	return slices.Concat(key(port), []expr.Any{&expr.Dynset{
		SrcRegKey: firstWord, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: meterFor,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Over: over, Unit: unit, Burst: burst}},
	}})
}

func protocol(n byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}},
	}
}

func toService(n byte, port uint16) []expr.Any {
	return slices.Concat(protocol(n), []expr.Any{
		load(expr.PayloadBaseTransportHeader, 2, 2, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	})
}

// fromService matches a TCP segment from a port.
func fromService(port uint16) []expr.Any {
	return slices.Concat(protocol(unix.IPPROTO_TCP), []expr.Any{
		load(expr.PayloadBaseTransportHeader, 0, 2, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	})
}

// setPort changes a port in the header of a TCP segment, at an offset.
func setPort(offset uint32, port uint16) []expr.Any {
	const checksum = 16 // its offset in the header
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}
}

// setMark gives a packet a mark, which marked matches.
func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func marked(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}

func toServices(n byte, set string) []expr.Any {
	return slices.Concat(protocol(n), []expr.Any{
		load(expr.PayloadBaseTransportHeader, 2, 2, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set},
	})
}

// connected matches a TCP segment that opens no connection: any but SYN without
// ACK.
func connected() []expr.Any {
	const syn, ack = 2, 16
	return slices.Concat(protocol(unix.IPPROTO_TCP), []expr.Any{
		load(expr.PayloadBaseTransportHeader, 13, 1, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{syn}},
	})
}

func (f family) icmpType(n byte) []expr.Any {
	return slices.Concat(protocol(f.icmp), []expr.Any{
		load(expr.PayloadBaseTransportHeader, 0, 1, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}},
	})
}

// quotes matches an ICMP error that quotes a packet to an address in a set; with not, to
// another one.
func (f family) quotes(set string, not bool) []expr.Any {
	return []expr.Any{
		load(expr.PayloadBaseTransportHeader, f.quoted, f.size, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: not},
	}
}

// fragmentOffset loads the offset of an IPv6 fragment, and matches no packet that is none.
var fragmentOffset = &expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}

// lateFragment matches all fragments but the first. If the first is dropped, the
// others make no packet.
func (f family) lateFragment() []expr.Any { return f.fragmentAt(expr.CmpOpNeq, 0) }

// fragmentAt compares the offset of a fragment, in units of eight bytes. An IPv6 packet
// that is no fragment does not match.
func (f family) fragmentAt(op expr.CmpOp, offset uint16) []expr.Any {
	mask, first := []byte{0x1f, 0xff}, []expr.Any{load(expr.PayloadBaseNetworkHeader, 6, 2, 1)}
	if f.proto == unix.NFPROTO_IPV6 {
		mask, first = []byte{0xff, 0xf8}, []expr.Any{fragmentOffset}
		offset <<= 3 // reserved bits and the flag follow it
	}
	return append(first,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: mask, Xor: []byte{0, 0}},
		&expr.Cmp{Op: op, Register: 1, Data: binary.BigEndian.AppendUint16(nil, offset)})
}

// destinationIs matches a destination that is of a kind (RTN_*) in the routing
// table. onPort restricts the lookup to the port itself, as link-local addresses
// need.
func destinationIs(kind uint32, onPort bool) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: onPort, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(kind)},
	}
}

// sourceIs matches a source that is of a kind (RTN_*) on the port itself, as link-local
// addresses need.
func sourceIs(kind uint32) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(kind)},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func accept() []expr.Any           { return verdict(expr.VerdictAccept, "") }
func leave() []expr.Any            { return verdict(expr.VerdictReturn, "") }
func jump(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }
func discard() []expr.Any          { return verdict(expr.VerdictDrop, "") }

// logTo sends a packet to a group of nfnetlink_log.
func logTo(group uint16) []expr.Any {
	return []expr.Any{&expr.Log{Key: 1 << unix.NFTA_LOG_GROUP, Group: group}}
}

func byMap(register uint32, name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: register, SetName: name, IsDestRegSet: true}}
}

// span is a range of addresses, and the verdict for packets to it.
type span struct {
	first, last netip.Addr
	verdict     *expr.Verdict
}

func spanOf(p netip.Prefix, v *expr.Verdict) span {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return span{p.Masked().Addr(), last, v}
}

func (s span) overlaps(o span) bool {
	return s.first.Compare(o.last) <= 0 && o.first.Compare(s.last) <= 0
}

// intervals returns the elements of a set or map of addresses. Of spans that
// overlap it keeps the first.
func intervals(spans []span) []nftables.SetElement {
	var kept []span
	for _, s := range spans {
		if !slices.ContainsFunc(kept, s.overlaps) {
			kept = append(kept, s)
		}
	}
	slices.SortFunc(kept, func(a, b span) int { return a.first.Compare(b.first) })
	var all []nftables.SetElement
	for _, s := range kept {
		all = append(all, nftables.SetElement{Key: s.first.AsSlice(), VerdictData: s.verdict})
		if end := s.last.Next(); end.IsValid() {
			all = append(all, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// of returns the prefixes of a family as spans, in order; of two that begin alike,
// the larger one first.
func (f family) of(ps []netip.Prefix) []span {
	var spans []span
	for _, p := range ps {
		if p.IsValid() && p.Addr().Is4() == (f.size == 4) {
			spans = append(spans, spanOf(p, nil))
		}
	}
	slices.SortFunc(spans, func(a, b span) int {
		if c := a.first.Compare(b.first); c != 0 {
			return c
		}
		return b.last.Compare(a.last)
	})
	return spans
}

// starts lists the first octets of all addresses in spans.
func (f family) starts(spans []span) (elements []nftables.SetElement) {
	seen := map[int]bool{}
	for _, s := range spans {
		number := func(a netip.Addr) (n int) {
			for _, b := range a.AsSlice()[:f.first] {
				n = n<<8 | int(b)
			}
			return n
		}
		for n := number(s.first); n <= number(s.last); n++ {
			seen[n] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(seen)) {
		elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, uint16(n))[2-f.first:]})
	}
	return elements
}

// destinations returns the verdicts on packets from ports by destination. Packets
// to all other destinations pass.
func (f family) destinations(private []netip.Prefix) []span {
	never := &expr.Verdict{Kind: expr.VerdictGoto, Chain: droppedChain(fabric.DropDestination, false)}
	closed := &expr.Verdict{Kind: expr.VerdictGoto, Chain: "closed" + f.digit}
	between := func(first, last string, v *expr.Verdict) span {
		return span{netip.MustParseAddr(first), netip.MustParseAddr(last), v}
	}
	var spans []span
	if f.size == 4 {
		spans = []span{
			between("0.0.0.0", "0.255.255.255", never),
			between("127.0.0.0", "127.255.255.255", never), // also where route_localnet is on
			between("169.254.0.0", "169.254.255.255", closed),
			// Multicast and reserved addresses, but not the broadcast of a guest
			// that looks for its address.
			between("224.0.0.0", "255.255.255.254", never),
			between("255.255.255.255", "255.255.255.255", &expr.Verdict{Kind: expr.VerdictGoto, Chain: "broadcast4"}),
		}
	} else {
		spans = []span{
			between("::", "::ffff:ffff", never), // the unspecified and the loopback address, and IPv4-compatible ones
			between("::ffff:0:0", "::ffff:ffff:ffff", never),
			between("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &expr.Verdict{Kind: expr.VerdictGoto, Chain: "link_local"}),
			// Between the two is link-local multicast, which neighbor discovery
			// needs.
			between("ff00::", "ff01:ffff:ffff:ffff:ffff:ffff:ffff:ffff", never),
			between("ff03::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", never),
		}
	}
	for _, s := range f.of(private) {
		s.verdict = closed
		spans = append(spans, s)
	}
	return spans
}
