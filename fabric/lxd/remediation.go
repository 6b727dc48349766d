package lxd

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// maxLinkName is the longest link name in bytes: IFNAMSIZ without its NUL.
const maxLinkName = 15

// unplugged says why the n-th NIC has no device, and how to give it one. The
// devices in taken are those of other NICs.
func (d dialect) unplugged(i instance, n int, taken map[string]bool) error {
	port, peer := fabric.PortName(i.Name, n), fabric.PeerName(i.Name, n)
	name, dev := i.candidate(n, taken)
	host := dev["host_name"]
	switch kind := dev["nictype"]; {
	case name == "":
		return fmt.Errorf("NIC %d has no device, neither p2p with host_name %s nor physical with parent %s; %s", n, port, peer, d.add(i, n, fmt.Sprintf("eth%d", n)))
	case kind == "p2p" && host == "":
		return fmt.Errorf("NIC device %s has no host_name, and the fabric looks for %s; %s", name, port, d.set(i, name, "host_name="+port))
	case kind == "p2p" && len(host) > maxLinkName:
		return fmt.Errorf("NIC device %s has a host_name of %d bytes, and Linux takes %d; %s", name, len(host), maxLinkName, d.set(i, name, "host_name="+port))
	case kind == "p2p":
		return fmt.Errorf("NIC device %s has the host_name %s, and the fabric looks for %s; %s", name, host, port, d.set(i, name, "host_name="+port))
	case kind == "physical":
		return fmt.Errorf("NIC device %s has the parent %s, and the fabric makes %s; %s", name, dev["parent"], peer, d.set(i, name, "parent="+peer))
	default:
		kind = cmp.Or(kind, "on the network "+dev["network"])
		return fmt.Errorf("NIC device %s is %s, which %s connects itself; %s", name, kind, d.title, d.replace(i, n, name))
	}
}

// candidate finds the device that is most likely meant for the n-th NIC: a free one
// of the right kinds, or the one with the usual name.
func (i instance) candidate(n int, taken map[string]bool) (string, device) {
	var free []string
	for _, name := range slices.Sorted(maps.Keys(i.ExpandedDevices)) {
		if i.ExpandedDevices[name]["type"] == "nic" && !taken[name] {
			free = append(free, name)
		}
	}
	usual := fmt.Sprintf("eth%d", n)
	ofKind := slices.DeleteFunc(slices.Clone(free), func(name string) bool {
		kind := i.ExpandedDevices[name]["nictype"]
		return kind != "p2p" && kind != "physical"
	})
	switch {
	case slices.Contains(ofKind, usual), len(ofKind) == 0 && slices.Contains(free, usual):
		return usual, i.ExpandedDevices[usual]
	case len(ofKind) > 0:
		return ofKind[0], i.ExpandedDevices[ofKind[0]]
	}
	return "", nil
}

// set returns the command that changes a device. For a device of a profile, the
// command makes it the instance's own.
func (d dialect) set(i instance, name, change string) string {
	verb := "override"
	if _, own := i.Devices[name]; own {
		verb = "set"
	}
	return d.command(i, "config", "device", verb, i.Name, name, change)
}

func (d dialect) add(i instance, n int, name string) string {
	if _, taken := i.ExpandedDevices[name]; taken {
		name = fmt.Sprintf("net%d", n)
	}
	return d.command(i, "config", "device", "add", i.Name, name, "nic", "nictype=p2p", "host_name="+fabric.PortName(i.Name, n), fmt.Sprintf("name=eth%d", n))
}

// replace returns the command that gives a device another kind. Each kind has other
// options, so the command makes it anew. An instance's own device replaces a
// profile's with the same name.
func (d dialect) replace(i instance, n int, name string) string {
	inside := cmp.Or(i.ExpandedDevices[name]["name"], name)
	add := d.command(i, "config", "device", "add", i.Name, name, "nic", "nictype=p2p", "host_name="+fabric.PortName(i.Name, n), "name="+inside)
	if _, own := i.Devices[name]; own {
		return d.command(i, "config", "device", "remove", i.Name, name) + " && " + add
	}
	return add
}

// unset returns the command that removes a key from the instance or, if it is not
// there, from its last profile.
func (d dialect) unset(i instance, k string) string {
	if _, own := i.Config[k]; own || len(i.Profiles) == 0 {
		return d.command(i, "config", "unset", i.Name, k)
	}
	return d.command(i, "profile", "unset", i.Profiles[len(i.Profiles)-1], k)
}

// command returns a command line for a shell.
func (d dialect) command(i instance, words ...string) string {
	if i.Project != "" && i.Project != defaultProject {
		words = append(words, "--project", i.Project)
	}
	line := d.client
	for _, w := range words {
		line += " " + quote(w)
	}
	return line
}

// quote quotes a word so that a shell reads it back.
func quote(w string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.,:=/@+", r)
	}
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return !plain(r) }) {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
