package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// setting is a per-interface sysctl (Documentation/networking/ip-sysctl) and its
// value for a port.
type setting struct {
	family int
	id     int    // IPV4_DEVCONF_* or DEVCONF_*
	name   string // under /proc/sys/net/ipv{4,6}/conf/<port>/
	value  int32
}

// settings make an interface a port: it forwards, ignores redirects, source routes of
// each kind, router advertisements and advertisements of neighbours that it did not
// ask, and sends no redirects. A new link takes over what
// the host has under "default", such as segment routing between its own routers: by that
// a guest would reach every machine that the node reaches.
var settings = []setting{
	{unix.AF_INET, devconfForward4, "forwarding", 1},
	{unix.AF_INET, devconfAccRedir, "accept_redirects", 0},
	{unix.AF_INET, devconfSndRedir, "send_redirects", 0},
	{unix.AF_INET, devconfAccSrcRt, "accept_source_route", 0},
	{unix.AF_INET6, devconfDisable6, "disable_ipv6", 0},
	{unix.AF_INET6, devconfForward6, "forwarding", 1},
	{unix.AF_INET6, devconfAcceptRA, "accept_ra", 0},
	{unix.AF_INET6, devconfAccRed6, "accept_redirects", 0},
	{unix.AF_INET6, devconfSegments, "seg6_enabled", 0},
	{unix.AF_INET6, devconfRPLRoute, "rpl_seg_enabled", 0},
	{unix.AF_INET6, devconfAcceptNA, "accept_untracked_na", 0}, // each would make a neighbour
}

// Values of rp_filter (RFC 3704).
const (
	strictPath = 1 // a source must be routed to the port
	loosePath  = 2 // a source must be routed at all
)

// reversePathOf returns the rp_filter of a port. The addresses of a guest that is
// about to arrive are not routed to its port yet; the packet filter lets only these
// pass.
func reversePathOf(p fabric.Port) int32 {
	if p.Incoming {
		return loosePath
	}
	return strictPath
}

// reversePath returns a link's rp_filter, and whether the kernel gave it.
func (l link) reversePath() (int32, bool) {
	return l.conf(setting{family: unix.AF_INET, id: devconfRPFilter})
}

// reversePathFault describes a wrong rp_filter of a port, or returns "".
func (l link) reversePathFault(p fabric.Port) string {
	have, known := l.reversePath()
	if want := reversePathOf(p); known && have != want {
		return fmt.Sprintf("ipv4.rp_filter is %d, not %d", have, want)
	}
	return ""
}

// settingFaults lists the settings of a link that differ from a port's.
func (l link) settingFaults() []string {
	var faults []string
	for _, s := range settings {
		if have, known := l.conf(s); known && have != s.value {
			faults = append(faults, fmt.Sprintf("%s is %d, not %d", s, have, s.value))
		}
	}
	return faults
}

func (s setting) String() string {
	return map[int]string{unix.AF_INET: "ipv4.", unix.AF_INET6: "ipv6."}[s.family] + s.name
}

// encodeSpec puts all IPv4 settings and the address generation mode into an
// IFLA_AF_SPEC: one message instead of a sysctl write each.
func encodeSpec(ae *netlink.AttributeEncoder, ipv6 bool, reversePath int32) {
	ae.Nested(unix.IFLA_AF_SPEC, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(unix.AF_INET, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(inetConf, func(ae *netlink.AttributeEncoder) error {
				for _, s := range settings {
					if s.family == unix.AF_INET {
						ae.Int32(uint16(s.id), s.value)
					}
				}
				ae.Int32(devconfRPFilter, reversePath)
				return nil
			})
			return nil
		})
		if ipv6 {
			// The gateway is the port's only link-local address; the kernel makes
			// no other.
			ae.Nested(unix.AF_INET6, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(inet6GenMode, genModeNone)
				return nil
			})
		}
		return nil
	})
}

// writeSettings writes the IPv6 settings that differ: rtnetlink can only read them.
// It also sets the proxy delay to 0 if the port proxies, by its own setting or by
// that of all interfaces.
func (l link) writeSettings(all *proxying) error {
	for _, s := range settings {
		have, known := l.conf(s)
		if s.family != unix.AF_INET6 || !known || have == s.value {
			continue
		}
		if err := writeSysctl("ipv6/conf/"+l.name+"/"+s.name, s.value); err != nil {
			return err
		}
	}
	for _, proxy := range []struct {
		conf setting
		all  bool
		path string
	}{
		{setting{family: unix.AF_INET, id: devconfProxyARP}, all.ipv4.Load(), "ipv4/neigh/"},
		{setting{family: unix.AF_INET6, id: devconfProxyNDP}, all.ipv6.Load(), "ipv6/neigh/"},
	} {
		// By default a proxy answers a guest that asks for a neighbour only after
		// up to 0.8 s.
		if on, known := l.conf(proxy.conf); known && (on != 0 || proxy.all) {
			if err := writeSysctl(proxy.path+l.name+"/proxy_delay", 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// proxying has the settings by which all interfaces of the host proxy for
// neighbours.
type proxying struct{ ipv4, ipv6 atomic.Bool }

func (p *proxying) look() {
	v4, _ := readSysctl("ipv4/conf/all/proxy_arp")
	v6, _ := readSysctl("ipv6/conf/all/proxy_ndp")
	p.ipv4.Store(v4 == "1")
	p.ipv6.Store(v6 == "1")
}

const sysctlRoot = "/proc/sys/net/"

// writeSysctl writes without package os, which registers each file that it opens
// with Go's poller: a guest waits while its port gets a setting or two.
func writeSysctl(path string, value int32) error {
	fd, err := unix.Open(sysctlRoot+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, fmt.Appendf(nil, "%d", value))
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("sysctl net.%s = %d: %w", strings.ReplaceAll(path, "/", "."), value, err)
	}
	return nil
}

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + path)
	return strings.TrimSpace(string(b)), err
}

// enableForwarding makes the node a router for both families. IPv6 interfaces that
// learn their default route from router advertisements would lose it when
// forwarding goes on, so enableForwarding makes them go on listening (accept_ra =
// 2).
func enableForwarding() error {
	if v, err := readSysctl("ipv4/ip_forward"); err != nil || v != "1" {
		if err := writeSysctl("ipv4/ip_forward", 1); err != nil {
			return fmt.Errorf("%w; a node must forward, allow it or set it at boot", err)
		}
	}
	if v, err := readSysctl("ipv6/conf/all/forwarding"); err != nil || v == "1" {
		return nil // already on, or a kernel without IPv6
	}
	entries, err := os.ReadDir(sysctlRoot + "ipv6/conf")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if v, err := readSysctl("ipv6/conf/" + e.Name() + "/accept_ra"); err == nil && v == "1" && e.Name() != "all" && e.Name() != "default" && e.Name() != "lo" {
			if err := writeSysctl("ipv6/conf/"+e.Name()+"/accept_ra", 2); err != nil {
				return err
			}
		}
	}
	if err := writeSysctl("ipv6/conf/all/forwarding", 1); err != nil {
		return fmt.Errorf("%w; a node must forward, allow it or set it at boot", err)
	}
	return nil
}

// hasIPv6 reports whether this kernel has IPv6.
func hasIPv6() bool {
	_, err := os.Stat(sysctlRoot + "ipv6/conf")
	return err == nil
}

// BootID returns the ID of this boot of the machine (random(4)), or "" if it cannot
// be read.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
