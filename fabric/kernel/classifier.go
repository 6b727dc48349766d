package kernel

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// Constants of <linux/pkt_sched.h>, <linux/pkt_cls.h> and
// <linux/tc_act/tc_mirred.h>.
const (
	clsactParent   = 0xfffffff1 // TC_H_CLSACT
	clsactHandle   = 0xffff0000
	ingressParent  = 0xfffffff2 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
	tcaKind        = 1
	tcaOptions     = 2
	u32Sel         = 5 // TCA_U32_SEL
	u32Act         = 7
	u32Terminal    = 1
	actKind        = 1
	actOptions     = 2
	mirredParms    = 2
	ingressRedir   = 3 // TCA_INGRESS_REDIR
	actStolen      = 4 // TC_ACT_STOLEN
	filterPriority = 1
)

// tcmsg is the fixed header of tc messages (rtnetlink(7)).
func tcmsg(index int32, handle, parent, info uint32) []byte {
	b := make([]byte, 20)
	putUint32(b[4:], uint32(index))
	putUint32(b[8:], handle)
	putUint32(b[12:], parent)
	putUint32(b[16:], info)
	return b
}

// clsact lets filters act on packets that come in at the peer.
func (t *trial) clsact() error {
	_, err := t.rtnl.Do(rtnl.Message(unix.RTM_NEWQDISC, netlink.Acknowledge|netlink.Create|netlink.Excl, tcmsg(t.peer.index, clsactHandle, clsactParent, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(tcaKind, "clsact")
	}))
	if err != nil {
		return fmt.Errorf("tc qdisc clsact: %w; load sch_ingress", err)
	}
	return nil
}

// redirect makes the course's packets to the guest, which come in at the peer, come
// in at the link of the underlay instead.
func (t *trial) redirect(c course) error {
	info := uint32(filterPriority)<<16 | uint32(capture.NetworkUint16(protocolOf(c.family)))
	clear := rtnl.Message(unix.RTM_DELTFILTER, netlink.Acknowledge, tcmsg(t.peer.index, 0, ingressParent, 0), nil)
	_, _ = t.rtnl.Do(clear) // remove the filter of the course before; at first there is none
	set := rtnl.Message(unix.RTM_NEWTFILTER, netlink.Acknowledge|netlink.Create|netlink.Excl, tcmsg(t.peer.index, 0, ingressParent, info), func(ae *netlink.AttributeEncoder) {
		ae.String(tcaKind, "u32")
		ae.Nested(tcaOptions, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(u32Sel, destinationSelector(c.guest.AsSlice()))
			ae.Nested(u32Act, func(ae *netlink.AttributeEncoder) error {
				ae.Nested(1, func(ae *netlink.AttributeEncoder) error { // the first action
					ae.String(actKind, "mirred")
					ae.Nested(actOptions, func(ae *netlink.AttributeEncoder) error {
						parms := make([]byte, 28) // struct tc_mirred
						putUint32(parms[8:], actStolen)
						putUint32(parms[20:], ingressRedir)
						putUint32(parms[24:], uint32(c.link.index))
						ae.Bytes(mirredParms, parms)
						return nil
					})
					return nil
				})
				return nil
			})
			return nil
		})
	})
	if _, err := t.rtnl.Do(set); err != nil {
		return fmt.Errorf("tc filter u32 with action mirred to %s: %w; load cls_u32 and act_mirred", c.link.name, err)
	}
	return nil
}

// destinationSelector is a struct tc_u32_sel that matches an IP destination.
func destinationSelector(to []byte) []byte {
	at := uint32(16)
	if len(to) == 16 {
		at = 24
	}
	sel := make([]byte, 16, 16+4*len(to))
	sel[0], sel[2] = u32Terminal, byte(len(to)/4)
	for i := 0; i < len(to); i += 4 {
		key := make([]byte, 16) // struct tc_u32_key: mask, value, offset, mask of the offset
		putUint32(key, 0xffffffff)
		copy(key[4:], to[i:i+4])
		putUint32(key[8:], at+uint32(i))
		sel = append(sel, key...)
	}
	return sel
}
