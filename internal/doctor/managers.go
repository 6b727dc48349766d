package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

func lookAtNetworkManager(_ context.Context, e *examination) []Finding {
	if !e.exists("/run/NetworkManager") && !e.starts("NetworkManager.service") {
		return good("NetworkManager neither runs nor starts at boot")
	}
	const main = "/etc/NetworkManager/NetworkManager.conf"
	all := parseINI(main, e.read(main))
	for _, path := range e.dropIns(".conf", "/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d") {
		all = append(all, parseINI(path, e.read(path))...)
	}
	if missed := managed(all); len(missed) > 0 {
		return []Finding{wrong("NetworkManager manages the ports of guests (links such as "+strings.Join(missed, ", ")+")",
			"put 90-vmfabric.conf of vmfabric's package, or of packaging/NetworkManager in its sources, into /etc/NetworkManager/conf.d, then systemctl reload NetworkManager")}
	}
	return good("NetworkManager leaves the ports alone")
}

// managed lists the names of ports that a configuration of NetworkManager does not
// leave alone (NetworkManager.conf(5), unmanaged-devices and managed of a device).
func managed(all []entry) (names []string) {
	var specs []string
	matches := map[string]string{} // by section
	for _, e := range all {
		values := strings.FieldsFunc(e.value, func(r rune) bool { return r == ';' || r == ',' })
		switch key := e.section + " " + strings.TrimSpace(e.key); key {
		case "keyfile unmanaged-devices":
			specs = values
		case "keyfile unmanaged-devices+":
			specs = append(specs, values...)
		case "keyfile unmanaged-devices-":
			specs = slices.DeleteFunc(specs, func(s string) bool { return slices.Contains(values, s) })
		default:
			if strings.HasPrefix(e.section, "device") && e.key == "match-device" {
				matches[e.section] = e.value
			}
		}
	}
	for _, e := range all {
		off := e.value == "0" || e.value == "false" || e.value == "no"
		if strings.HasPrefix(e.section, "device") && e.key == "managed" && off {
			specs = append(specs, strings.FieldsFunc(matches[e.section], func(r rune) bool { return r == ';' || r == ',' })...)
		}
	}
	for _, name := range portNames {
		if !slices.ContainsFunc(specs, func(s string) bool { return meansLink(strings.TrimSpace(s), name) }) ||
			slices.ContainsFunc(specs, func(s string) bool {
				except, ok := strings.CutPrefix(strings.TrimSpace(s), "except:")
				return ok && meansLink(except, name)
			}) {
			names = append(names, name)
		}
	}
	return names
}

// meansLink reports whether a device specification of NetworkManager means a link by
// its name.
func meansLink(spec, name string) bool {
	if spec == "*" {
		return true
	}
	pattern, ok := strings.CutPrefix(spec, "interface-name:")
	if !ok {
		return false
	}
	match, _ := filepath.Match(strings.TrimLeft(pattern, "=~"), name)
	return match
}

// networkdDirs are the directories of systemd-networkd's files, the first of which has
// precedence.
var networkdDirs = []string{"/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network"}

func lookAtNetworkd(_ context.Context, e *examination) (found []Finding) {
	if !e.exists("/run/systemd/netif/state") && !e.starts("systemd-networkd.service") {
		return good("systemd-networkd neither runs nor starts at boot")
	}
	const main = "/etc/systemd/networkd.conf"
	all := parseINI(main, e.read(main))
	for _, path := range e.dropIns(".conf", "/etc/systemd/networkd.conf.d", "/run/systemd/networkd.conf.d", "/usr/local/lib/systemd/networkd.conf.d", "/usr/lib/systemd/networkd.conf.d") {
		all = append(all, parseINI(path, e.read(path))...)
	}
	if keys := takesForeign(all); len(keys) > 0 {
		found = append(found, wrong("systemd-networkd removes routes and rules that it did not make, when it starts: "+strings.Join(keys, " and ")+" is not 'no'",
			"put 90-vmfabric.conf of vmfabric's package, or of packaging/systemd-network in its sources, into /etc/systemd/networkd.conf.d, then systemctl restart systemd-networkd"))
	}
	if file := e.portsFile(); file != "" {
		found = append(found, wrong(file+" is systemd-networkd's file for the ports of guests (links such as "+portNames[0]+")",
			"put 05-vmfabric.network of vmfabric's package, or of packaging/systemd-network in its sources, into /etc/systemd/network, then networkctl reload"))
	}
	if len(found) == 0 {
		return good("systemd-networkd leaves the ports, and others' routes and rules, alone")
	}
	return found
}

// takesForeign lists the keys by which systemd-networkd removes what is not its own
// (networkd.conf(5)); by default it does.
func takesForeign(all []entry) (keys []string) {
	last := map[string]string{}
	for _, e := range all {
		if e.section == "Network" {
			last[e.key] = strings.ToLower(e.value)
		}
	}
	for _, key := range []string{"ManageForeignRoutes", "ManageForeignRoutingPolicyRules"} {
		if !slices.Contains([]string{"no", "false", "off", "0", "n", "f"}, last[key]) {
			keys = append(keys, key+"=")
		}
	}
	return keys
}

// portsFile returns the first .network file that matches a port, unless that leaves it
// alone; "" if there is none.
func (e *examination) portsFile() string {
	for _, name := range portNames {
		for _, path := range e.dropIns(".network", networkdDirs...) {
			all := parseINI(path, e.read(path))
			if !matchesPort(all, name) {
				continue
			}
			if !slices.ContainsFunc(all, func(e entry) bool {
				return e.section == "Link" && e.key == "Unmanaged" && slices.Contains([]string{"yes", "true", "on", "1"}, strings.ToLower(e.value))
			}) {
				return path
			}
			break // the first file that matches counts
		}
	}
	return ""
}

// matchesPort reports whether the [Match] of a .network file is for a link of that name
// which is a tap or one end of a veth pair. What else it may ask for, such as a path or
// a MAC address, no port has.
func matchesPort(all []entry, name string) bool {
	asked := 0
	for _, e := range all {
		if e.section != "Match" || e.value == "" {
			continue
		}
		asked++
		words := strings.Fields(e.value)
		switch e.key {
		case "Name":
			if len(words) > 0 && strings.HasPrefix(words[0], "!") {
				words[0] = words[0][1:]
				if anyMatches(words, name) {
					return false
				}
			} else if !anyMatches(words, name) {
				return false
			}
		case "Kind":
			if !anyMatches(words, "tun") && !anyMatches(words, "veth") {
				return false
			}
		case "Type":
			if !anyMatches(words, "ether") {
				return false
			}
		case "Driver":
			if !anyMatches(words, "tun") && !anyMatches(words, "veth") {
				return false
			}
		case "Virtualization", "Host", "KernelCommandLine", "KernelVersion", "Architecture", "Credential", "Firmware": // of the machine
			asked--
		default:
			return false
		}
	}
	return asked > 0
}

func anyMatches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := filepath.Match(p, name)
		return ok
	})
}

func lookAtNetplan(_ context.Context, e *examination) (found []Finding) {
	files := e.dropIns(".yaml", "/run/netplan", "/etc/netplan", "/usr/lib/netplan", "/lib/netplan")
	for _, path := range files {
		if e.denied(path) {
			return unknown("netplan's "+path, fs.ErrPermission)
		}
		for _, id := range netplanPorts(e.read(path)) {
			found = append(found, wrong(fmt.Sprintf("netplan's %s configures the ports of guests: %s matches links such as %s", path, id, portNames[0]),
				"have its match name the node's own interfaces alone (name: \"en*\", or macaddress), then netplan apply"))
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(files) == 0:
		return good("there is no file of netplan")
	}
	return good("no file of netplan matches the ports")
}

// netplanPorts lists the devices of a file of netplan that match ports.
func netplanPorts(text string) (ids []string) {
	type device struct {
		Match *struct {
			Name       any    `yaml:"name"` // one pattern, or several
			MACAddress string `yaml:"macaddress"`
			Driver     any    `yaml:"driver"`
		} `yaml:"match"`
	}
	var doc struct {
		Network struct {
			Ethernets map[string]device `yaml:"ethernets"`
		} `yaml:"network"`
	}
	if yaml.Unmarshal([]byte(text), &doc) != nil {
		return nil // netplan refuses it, too
	}
	for id, d := range doc.Network.Ethernets {
		names := []string{id}
		if d.Match != nil {
			names = patterns(d.Match.Name)
			if d.Match.MACAddress != "" || len(names) == 0 && d.Match.Driver != nil {
				continue
			}
			if len(names) == 0 {
				names = []string{"*"} // an empty match is for all
			}
		}
		if anyMatches(names, portNames[0]) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// patterns lists the patterns of a YAML value that may be a list.
func patterns(v any) (all []string) {
	switch v := v.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, p := range v {
			all = append(all, fmt.Sprint(p))
		}
	}
	return all
}
