package kernel

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// renameFormer renames ports of the cluster that still have their
// [fabric.FormerPortName]. Guests keep their ports: a process that holds a tap
// holds it under any name. The former name stays as an alternative name if the
// kernel has these, for programs that know the port by it.
func (d *Dataplane) renameFormer() error {
	replies, err := d.rtnl.Do(rtnl.Message(unix.RTM_GETLINK, netlink.Dump, rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	}))
	if err != nil {
		return fmt.Errorf("list ports: %w", err)
	}
	var errs []error
	for _, reply := range replies {
		l, err := parseLink(reply.Data)
		if err != nil {
			continue
		}
		cluster, vm, n, ours := fabric.ParseAlias(l.alias)
		if !ours || cluster != d.cluster || l.name != fabric.FormerPortName(vm, n) {
			continue
		}
		if name := fabric.PortName(vm, n); name != l.name {
			if err := d.rtnl.rename(l, name); err != nil {
				errs = append(errs, fmt.Errorf("rename port %s to %s: %w; stop the guest, or remove the link that has the name", l.name, name, err))
				continue
			}
			if d.features.has(altNames) {
				_ = d.rtnl.addAltName(l.index, l.name)
			}
			d.log.Info("port renamed", "vm", vm, "from", l.name, "port", name)
		}
	}
	return errors.Join(errs...)
}

// rename gives a link another name. Before Linux 6.2 the link must be down for it;
// its routes go with that, and come again when the agent puts the port.
func (r *socket) rename(l link, name string) error {
	set := func(flags, mask uint32, attrs func(*netlink.AttributeEncoder)) error {
		_, err := r.Do(rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, flags, mask), attrs))
		return err
	}
	called := func(ae *netlink.AttributeEncoder) { ae.String(unix.IFLA_IFNAME, name) }
	err := set(0, 0, called)
	if rtnl.Errno(err) != unix.EBUSY {
		return err
	}
	if err := set(0, unix.IFF_UP, nil); err != nil {
		return err
	}
	return errors.Join(set(0, 0, called), set(unix.IFF_UP, unix.IFF_UP, nil))
}
