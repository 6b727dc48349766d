package main

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// assembly is a program of eBPF (RFC 9669).
type assembly struct {
	code   []byte
	jumps  map[int]string // from instructions
	labels map[string]int
}

// Fields of struct __sk_buff and results of <linux/bpf.h> and <linux/pkt_cls.h>.
const (
	skbProtocol, skbIfindex, skbData, skbDataEnd = 16, 40, 76, 80

	lookupElement      = 1 // a helper
	actPass, actDrop   = 0, 2
	stack, result      = 10, 0 // registers
	ethernetHeader     = 14
	isMap              = 1 // of the source register of a 64-bit immediate (BPF_PSEUDO_MAP_FD)
	onStack, elementAt = -24, -28
)

// do appends an instruction.
func (a *assembly) do(op, dst, src byte, offset int16, immediate int32) {
	b := binary.NativeEndian.AppendUint16([]byte{op, registers(dst, src)}, uint16(offset))
	a.code = binary.NativeEndian.AppendUint32(append(a.code, b...), uint32(immediate))
}

// registers is the octet with the numbers of both registers, the destination in the bits
// that come first in the order of the machine.
func registers(dst, src byte) byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return src<<4 | dst
	}
	return dst<<4 | src
}

func (a *assembly) load(size, dst, src byte, offset int16) {
	a.do(unix.BPF_LDX|unix.BPF_MEM|size, dst, src, offset, 0)
}

func (a *assembly) store(size, dst, src byte, offset int16) {
	a.do(unix.BPF_STX|unix.BPF_MEM|size, dst, src, offset, 0)
}

func (a *assembly) move(dst, src byte) {
	a.do(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, dst, src, 0, 0)
}

func (a *assembly) set(dst byte, n int32) {
	a.do(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, dst, 0, 0, n)
}

func (a *assembly) add(dst byte, n int32) {
	a.do(unix.BPF_ALU64|unix.BPF_ADD|unix.BPF_K, dst, 0, 0, n)
}

// jump jumps to a label further on; compare is BPF_JEQ and the like, of two registers, or
// of one and a number.
func (a *assembly) jump(op, dst, src byte, n int32, label string) {
	a.jumps[len(a.code)/8] = label
	a.do(unix.BPF_JMP|op, dst, src, 0, n)
}

func (a *assembly) label(name string) { a.labels[name] = len(a.code) / 8 }

// find looks up a key on the stack. The result is its element, or 0.
func (a *assembly) find(fd int, key int32) {
	a.do(unix.BPF_LD|unix.BPF_IMM|unix.BPF_DW, 1, isMap, 0, int32(fd))
	a.do(0, 0, 0, 0, 0)
	a.move(2, stack)
	a.add(2, key)
	a.do(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, lookupElement)
}

func (a *assembly) end(verdict int32) {
	a.set(result, verdict)
	a.do(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0)
}

// link gives the jumps their ways.
func (a *assembly) link() []byte {
	for at, label := range a.jumps {
		binary.NativeEndian.PutUint16(a.code[8*at+2:], uint16(a.labels[label]-at-1))
	}
	return a.code
}

// classify is the program. The key of a source is the port's index and an address of 16
// octets, of which IPv4 has the first four.
func classify(sources, near int) []byte {
	const context, data, end, at, first = 6, 7, 8, 3, 9
	a := &assembly{jumps: map[int]string{}, labels: map[string]int{}}
	kind := func(n uint16) int32 { return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))) }
	inside := func(octets int32) { // the packet has so many
		a.move(at, data)
		a.add(at, ethernetHeader+octets)
		a.jump(unix.BPF_JGT|unix.BPF_X, at, end, 0, "drop")
	}
	a.move(context, 1)
	a.load(unix.BPF_W, data, context, skbData)
	a.load(unix.BPF_W, end, context, skbDataEnd)
	a.load(unix.BPF_W, 2, context, skbIfindex)
	a.store(unix.BPF_W, stack, 2, onStack)
	a.load(unix.BPF_W, 2, context, skbProtocol)
	a.jump(unix.BPF_JEQ|unix.BPF_K, 2, 0, kind(unix.ETH_P_IPV6), "six")
	a.jump(unix.BPF_JEQ|unix.BPF_K, 2, 0, kind(unix.ETH_P_IP), "four")
	a.end(actPass)

	a.label("four")
	inside(20)
	a.load(unix.BPF_W, 2, data, ethernetHeader+12)
	a.store(unix.BPF_W, stack, 2, onStack+4)
	a.set(2, 0)
	for word := range int16(3) {
		a.store(unix.BPF_W, stack, 2, onStack+8+4*word)
	}
	a.load(unix.BPF_B, first, data, ethernetHeader+16)
	a.jump(unix.BPF_JA, 0, 0, 0, "look")

	a.label("six")
	inside(40)
	for word := range int16(4) {
		a.load(unix.BPF_W, 2, data, ethernetHeader+8+4*word)
		a.store(unix.BPF_W, stack, 2, onStack+4+4*word)
	}
	a.load(unix.BPF_H, first, data, ethernetHeader+24)
	a.add(first, 256)

	a.label("look")
	a.store(unix.BPF_W, stack, first, elementAt)
	a.find(near, elementAt)
	a.jump(unix.BPF_JEQ|unix.BPF_K, result, 0, 0, "drop")
	a.load(unix.BPF_B, 1, result, 0)
	a.jump(unix.BPF_JNE|unix.BPF_K, 1, 0, 0, "pass")
	a.find(sources, onStack)
	a.jump(unix.BPF_JEQ|unix.BPF_K, result, 0, 0, "drop")
	a.label("pass")
	a.end(actPass)
	a.label("drop")
	a.end(actDrop)
	return a.link()
}
