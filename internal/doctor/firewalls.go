package doctor

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

const firewallHelp = "as vmfabric's packaging/README.md, /usr/share/doc/vmfabric/README.md of the package, has it under What must pass"

// prefixes lists what guests may have, of a family; nil where the cluster is not known.
func (e *examination) prefixes(v6 bool) (all []netip.Prefix) {
	if e.cluster == nil {
		return nil
	}
	for _, r := range e.cluster.Announceable(v6) {
		if !slices.Contains(all, r.Prefix) {
			all = append(all, r.Prefix)
		}
	}
	return all
}

func lookAtFirewalld(_ context.Context, e *examination) []Finding {
	if !e.starts("firewalld.service") && !e.exists("/run/firewalld") {
		return good("firewalld neither runs nor starts at boot")
	}
	if e.denied("/etc/firewalld/zones") || e.denied("/etc/firewalld/firewalld.conf") {
		return unknown("the configuration of firewalld", fs.ErrPermission)
	}
	if backend(e.read("/etc/firewalld/firewalld.conf")) == "iptables" {
		if missing := directRules(e.read("/etc/firewalld/direct.xml")); len(missing) > 0 {
			return []Finding{wrong("firewalld has no direct rules that let the ports pass for "+strings.Join(missing, " and "), "add them "+firewallHelp)}
		}
		return good("firewalld has direct rules for the ports")
	}
	if e.cluster == nil {
		return blind("whether firewalld lets the pools pass: the cluster is not known")
	}
	zones, missing := e.zonesOfPools()
	if len(missing) > 0 {
		return []Finding{wrong(fmt.Sprintf("firewalld starts at boot, and no zone has %s as a source", join(missing)), "make a zone of the pools and two policies "+firewallHelp)}
	}
	for _, zone := range zones {
		if !e.policies(zone) {
			return []Finding{wrong(fmt.Sprintf("firewalld has a zone of the pools, %s, and not a policy with the target ACCEPT for each way", zone), "make the two policies "+firewallHelp)}
		}
	}
	return good("firewalld has a zone of the pools, and policies that let it pass")
}

// backend returns firewalld's FirewallBackend.
func backend(text string) string {
	for _, e := range parseINI("", text) {
		if e.key == "FirewallBackend" {
			return strings.ToLower(e.value)
		}
	}
	return "nftables"
}

// directRules lists the families whose direct rules of firewalld let no port pass.
func directRules(text string) (missing []string) {
	type rule struct {
		Family string `xml:"ipv,attr"`
		Chain  string `xml:"chain,attr"`
		Text   string `xml:",chardata"`
	}
	var doc struct {
		Rules []rule `xml:"rule"`
	}
	_ = xml.Unmarshal([]byte(text), &doc) // firewalld ignores a file that it cannot read, too
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, way := range []string{"--src-group", "--dst-group"} {
			if !slices.ContainsFunc(doc.Rules, func(r rule) bool {
				return r.Family == family && r.Chain == "FORWARD" && passes(r.Text, way)
			}) {
				missing = append(missing, family)
				break
			}
		}
	}
	return missing
}

// passes reports whether a rule of iptables accepts what goes to, or comes from, ports.
func passes(rule, way string) bool {
	return strings.Contains(rule, fmt.Sprintf("%s %d", way, fabric.LinkGroup)) && strings.Contains(rule, "ACCEPT")
}

// zonesOfPools lists firewalld's zones that have the pools as sources, and the pools that
// none has.
func (e *examination) zonesOfPools() (zones []string, missing []netip.Prefix) {
	of := map[netip.Prefix]string{}
	for _, path := range e.dropIns(".xml", "/etc/firewalld/zones", "/usr/lib/firewalld/zones") {
		var doc struct {
			Sources []struct {
				Address string `xml:"address,attr"`
			} `xml:"source"`
		}
		_ = xml.Unmarshal([]byte(e.read(path)), &doc) // likewise
		for _, s := range doc.Sources {
			if p, err := netip.ParsePrefix(s.Address); err == nil {
				of[p.Masked()] = strings.TrimSuffix(filepath.Base(path), ".xml")
			}
		}
	}
	for _, p := range slices.Concat(e.prefixes(false), e.prefixes(true)) {
		found := false
		for have, name := range of {
			if have.Bits() <= p.Bits() && have.Contains(p.Addr()) {
				zones, found = append(zones, name), true
			}
		}
		if !found {
			missing = append(missing, p)
		}
	}
	slices.Sort(zones)
	return slices.Compact(zones), missing
}

// policies reports whether firewalld accepts what is forwarded to a zone and from it.
func (e *examination) policies(zone string) bool {
	to, from := false, false
	for _, path := range e.dropIns(".xml", "/etc/firewalld/policies", "/usr/lib/firewalld/policies") {
		type end struct {
			Name string `xml:"name,attr"`
		}
		var doc struct {
			Target  string `xml:"target,attr"`
			Ingress []end  `xml:"ingress-zone"`
			Egress  []end  `xml:"egress-zone"`
		}
		if xml.Unmarshal([]byte(e.read(path)), &doc) != nil || doc.Target != "ACCEPT" {
			continue
		}
		to = to || slices.Contains(doc.Egress, end{zone})
		from = from || slices.Contains(doc.Ingress, end{zone})
	}
	return to && from
}

func join[T fmt.Stringer](vs []T) string {
	words := make([]string, len(vs))
	for i, v := range vs {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}

func lookAtUFW(_ context.Context, e *examination) []Finding {
	settings := map[string]string{}
	for _, path := range []string{"/etc/default/ufw", "/etc/ufw/ufw.conf"} {
		if e.denied(path) {
			return unknown("whether ufw is on", fs.ErrPermission)
		}
		for _, s := range parseINI(path, e.read(path)) {
			settings[s.key] = strings.ToLower(strings.Trim(s.value, `"'`))
		}
	}
	if settings["ENABLED"] != "yes" {
		return good("ufw is not here, or off")
	}
	if settings["DEFAULT_FORWARD_POLICY"] == "accept" {
		return good("ufw forwards by default")
	}
	if e.denied("/etc/ufw/before.rules") {
		return unknown("the rules of ufw", fs.ErrPermission)
	}
	var missing []string
	for _, f := range []struct {
		name, digit string
		v6          bool
	}{{"IPv4", "", false}, {"IPv6", "6", true}} {
		if f.v6 && settings["IPV6"] == "no" || e.cluster != nil && len(e.prefixes(f.v6)) == 0 {
			continue
		}
		if !e.ufwPasses(f.digit, e.prefixes(f.v6)) {
			missing = append(missing, f.name)
		}
	}
	if len(missing) == 0 {
		return good("ufw has rules that let the ports, or the pools, pass")
	}
	return []Finding{wrong("ufw is on, and has no rules that let the ports pass for "+strings.Join(missing, " and "), "add them to /etc/ufw/before.rules and before6.rules "+firewallHelp+", then ufw reload")}
}

// ufwPasses reports whether ufw lets ports pass by their group, or pools by their
// prefixes.
func (e *examination) ufwPasses(digit string, pools []netip.Prefix) bool {
	ways := map[string]bool{}
	for line := range strings.Lines(e.read("/etc/ufw/before" + digit + ".rules")) {
		for _, way := range []string{"--src-group", "--dst-group"} {
			if strings.HasPrefix(line, "-A ufw"+digit+"-before-forward ") && passes(line, way) {
				ways[way] = true
			}
		}
	}
	if len(ways) == 2 {
		return true
	}
	rules := e.read("/etc/ufw/user" + digit + ".rules")
	for _, p := range pools {
		for _, way := range []string{"-s ", "-d "} {
			if !strings.Contains(rules, fmt.Sprintf("-A ufw%s-user-forward %s%s -j ACCEPT", digit, way, p)) {
				return false
			}
		}
	}
	return len(pools) > 0
}

func lookAtDocker(_ context.Context, e *examination) []Finding {
	if !e.starts("docker.service") && !e.starts("docker.socket") && !e.exists("/run/docker.pid") {
		return good("Docker neither runs nor starts at boot")
	}
	var conf struct {
		IPTables      *bool `json:"iptables"`
		ForwardNoDrop bool  `json:"ip-forward-no-drop"`
		Forward       *bool `json:"ip-forward"`
	}
	if e.denied("/etc/docker/daemon.json") {
		return unknown("the configuration of Docker", fs.ErrPermission)
	}
	_ = json.Unmarshal([]byte(e.read("/etc/docker/daemon.json")), &conf) // Docker does not start with one that it cannot read
	files, _ := e.sysctlFiles()
	on := func(keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool {
			a, set := decisive(files, key)
			return set && a.value == "1"
		})
	}
	switch {
	case conf.IPTables != nil && !*conf.IPTables, conf.Forward != nil && !*conf.Forward, conf.ForwardNoDrop:
		return good("Docker sets no policy for what is forwarded")
	case on("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"):
		return good("forwarding is on at boot before Docker starts, so that it drops nothing that is forwarded")
	}
	return []Finding{wrong("Docker turns forwarding on at the next boot, and then drops what is forwarded: no file of sysctl.d sets net.ipv4.ip_forward = 1",
		"install our sysctl file, or let the ports pass "+firewallHelp)}
}
