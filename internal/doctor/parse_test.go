package doctor

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSysctlKeys(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/7.forwarding": "net/ipv4/conf/eth0.7/forwarding", "net/ipv4/conf/eth0.7/forwarding": "net/ipv4/conf/eth0.7/forwarding",
		"single": "single",
	} {
		assert.Equal(t, want, sysctlPath(key), key)
	}
}

func TestDecisive(t *testing.T) {
	files := parseSysctls("a", "net.ipv4.conf.all.forwarding = 1\nnet.ipv4.conf.*.rp_filter=1\n")
	files = append(files, parseSysctls("b", "net.ipv4.conf.*.forwarding = 0\n-net.ipv4.conf.eth1.rp_filter\nnonsense\n=\n-\n")...)
	for key, want := range map[string]string{
		"net/ipv4/conf/all/forwarding":  "a 1", // a name goes before a pattern, wherever that is
		"net/ipv4/conf/eth0/forwarding": "b 0",
		"net/ipv4/conf/eth0/rp_filter":  "a 1",
		"net/ipv4/conf/eth1/rp_filter":  "",
		"net/ipv6/conf/all/forwarding":  "",
	} {
		got, set := decisive(files, key)
		assert.Equal(t, want != "", set, key)
		if set {
			assert.Equal(t, want, got.file+" "+got.value, key)
		}
	}
}

// TestConnected reads what the kernel wrote on a little-endian machine, and in mapped form.
func TestConnected(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("another order of bytes")
	}
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 1500000A:1BEB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 1500000A:1BEB 1600000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 1500000A:D432 1700000A:1BEB 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: short
`
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("10.0.0.22")}, connected(text, 7147))
	assert.Empty(t, connected(text, 7148))
	const six = "  0: 000000FD10001000:1BEB B80D01200000000000000000010000FF:D431 01\n   1: x:1BEB 000000FD000010000000000022000000:0001 01\n   1: x:1BEB 0000000000000000FFFF00001600000A:0001 01\n"
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("2001:db8::ff00:1"), netip.MustParseAddr("fd00:0:10::22"), netip.MustParseAddr("10.0.0.22")}, connected(six, 7147)[:3:3])
}

func TestClocks(t *testing.T) {
	all := map[string]greeted{"a": {}, "b": {}, "c": {}, "d": {}}
	set := func(name string, ahead, within time.Duration) {
		g := all[name]
		g.Ahead, g.Within = ahead, within
		all[name] = g
	}
	set("a", 1500*time.Millisecond, 0)
	set("b", -time.Hour, time.Millisecond)
	set("c", 5*time.Second, 4*time.Second) // the exchange was slow
	set("d", 2100*time.Millisecond, time.Millisecond)
	var says []string
	for _, f := range clocks(all) {
		says = append(says, f.What)
	}
	assert.Equal(t, []string{"the clock of b is 1h0m0s behind this node's", "the clock of d is 2.1s ahead of this node's"}, says)
}

func FuzzFiles(f *testing.F) {
	f.Add("[a]\nb=c\n-net.ipv4.*=1\nnetwork: {ethernets: {a: {match: {name: [x]}}}}")
	f.Add(`audit(1.2:3): apparmor="DENIED" name="vmfabric"` + "\navc: denied { a } vmfabric")
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range parseSysctls("f", text) {
			decisive([]assignment{a}, "net/ipv4/ip_forward")
		}
		all := parseINI("f", text)
		managed(all)
		takesForeign(all)
		matchesPort(all, "web_net0")
		netplanPorts(text)
		directRules(text)
		connected(text, 1)
		for _, d := range denials(text, time.Unix(0, 0)) {
			if strings.Contains(d.What, "\n") {
				t.Errorf("%q has two lines", d.What)
			}
		}
	})
}
