package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/sys/unix"
)

// classifier is a prototype of the source check as a program of eBPF (bpf(2)) at the
// ingress of ports (tc-bpf(8)). A packet passes if a hash map has its port and source, or
// if its destination begins like one that nftables is to decide about; any other is
// dropped. What is no IP passes.
type classifier struct {
	node     *core.Host
	prog     int
	maps     []int
	links    []netlink.Link
	at       []int     // attachments by tcx
	took     []float64 // microseconds of an attachment
	attached bool
}

// nearOctets are first octets of IPv4's destinations that the prototype leaves to
// nftables; those of IPv6 are all outside of 2000::/3.
var nearOctets = []byte{0, 10, 127, 169}

// newClassifier loads the program, with the sources of guests. It is for the ports of
// those two in the middle.
func newClassifier(node *core.Host, gs []guest) (*classifier, error) {
	c := &classifier{node: node, prog: -1}
	sources, err := c.newMap(unix.BPF_MAP_TYPE_HASH, 20, 1<<17)
	if err != nil {
		return c, err
	}
	near, err := c.newMap(unix.BPF_MAP_TYPE_ARRAY, 4, 256+1<<16)
	if err != nil {
		return c, err
	}
	middle := (len(gs) - 1) / 2
	for i, g := range gs {
		link, err := node.Link(g.port())
		if err != nil {
			return c, err
		}
		if i == middle || i == middle+1 {
			c.links = append(c.links, link)
		}
		for _, a := range [][]byte{g.a4.AsSlice(), g.a6.AsSlice()} {
			k := make([]byte, 20)
			binary.NativeEndian.PutUint32(k, uint32(link.Attrs().Index))
			copy(k[4:], a)
			if err := put(sources, k); err != nil {
				return c, err
			}
		}
	}
	for n := range uint32(256 + 1<<16) {
		if !isNear(n) {
			continue
		}
		if err := put(near, binary.NativeEndian.AppendUint32(nil, n)); err != nil {
			return c, err
		}
	}
	c.prog, err = load(classify(sources, near))
	return c, err
}

// isNear says of which elements of the array nftables decides: the first 256 are of IPv4
// by the first octet, the others of IPv6 by the first two as they are in the packet.
func isNear(n uint32) bool {
	if n < 256 {
		return n >= 224 || slices.Contains(nearOctets, byte(n))
	}
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], uint16(n-256))
	return b[0]>>5 != 1
}

// newMap makes a map whose values are of one octet.
func (c *classifier) newMap(kind, keySize, entries uint32) (int, error) {
	attr := [12]uint32{kind, keySize, 1, entries}
	fd, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("make an eBPF map: %w", err)
	}
	c.maps = append(c.maps, fd)
	return fd, nil
}

// put puts a key into a map, with the value 1.
func put(fd int, key []byte) error {
	one := []byte{1}
	attr := struct {
		fd         uint32
		_          uint32
		key, value unsafe.Pointer
		flags      uint64
	}{fd: uint32(fd), key: unsafe.Pointer(&key[0]), value: unsafe.Pointer(&one[0])}
	_, err := bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(key)
	if err != nil {
		return fmt.Errorf("fill an eBPF map: %w", err)
	}
	return nil
}

// load loads a program for tc.
func load(code []byte) (int, error) {
	license, log := []byte("Apache-2.0\x00"), make([]byte, 1<<16)
	attr := struct {
		kind, instructions uint32
		code, license      unsafe.Pointer
		level, logSize     uint32
		log                unsafe.Pointer
		_                  [8]uint64
	}{
		kind: unix.BPF_PROG_TYPE_SCHED_CLS, instructions: uint32(len(code) / 8), code: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0]),
		level: 1, logSize: uint32(len(log)), log: unsafe.Pointer(&log[0]),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	if err != nil {
		return -1, fmt.Errorf("load an eBPF program: %w: %s", err, unix.ByteSliceToString(log))
	}
	return fd, nil
}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// attach has the program work at the measured ports: by tcx, which came with Linux 6.6,
// or else by a qdisc clsact.
func (c *classifier) attach() error {
	if c.attached {
		return nil
	}
	c.attached = true
	for _, l := range c.links {
		began := time.Now()
		fd, err := c.tcx(l)
		switch {
		case err == nil:
			c.at = append(c.at, fd)
		case errors.Is(err, unix.EINVAL):
			err = c.clsact(l)
		}
		if err != nil {
			return fmt.Errorf("eBPF program at %s: %w", l.Attrs().Name, err)
		}
		c.took = append(c.took, float64(time.Since(began).Microseconds()))
	}
	return nil
}

// tcx attaches the program to a link for as long as what it returns is open.
func (c *classifier) tcx(l netlink.Link) (fd int, err error) {
	attr := [8]uint32{uint32(c.prog), uint32(l.Attrs().Index), unix.BPF_TCX_INGRESS}
	err = c.node.Do(func() (err error) {
		fd, err = bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		return err
	})
	return fd, err
}

func (c *classifier) clsact(l netlink.Link) error {
	if err := c.node.Netlink().QdiscAdd(clsactOf(l)); err != nil {
		return err
	}
	return c.node.Netlink().FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          c.prog, Name: "sources", DirectAction: true,
	})
}

func clsactOf(l netlink.Link) netlink.Qdisc {
	at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	return &netlink.GenericQdisc{QdiscAttrs: at, QdiscType: "clsact"}
}

func (c *classifier) detach() (err error) {
	if !c.attached {
		return nil
	}
	c.attached = false
	for _, fd := range c.at {
		err = errors.Join(err, unix.Close(fd))
	}
	if len(c.at) == 0 {
		for _, l := range c.links {
			err = errors.Join(err, c.node.Netlink().QdiscDel(clsactOf(l)))
		}
	}
	c.at = nil
	return err
}

func (c *classifier) close() error {
	err := c.detach()
	for _, fd := range append(c.maps, c.prog) {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}
