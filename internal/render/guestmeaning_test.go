package render_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
)

// meaning is what a configuration says of a link, in whichever format.
type meaning struct {
	match     string // a name or a MAC address
	setName   string // what the link is called then
	mtu       int
	linkLocal bool // IPv6 link-local address wanted
	addresses []netip.Prefix
	routes    []defaultRoute
	rules     []string // "from 203.0.113.20/32 lookup 101 priority 101"
}

type defaultRoute struct {
	to, via string
	table   int // 0: main
}

// wanted gives what the links of a guest are to be told, all but the match.
func wanted(vm fabric.VM) []meaning {
	links := make([]meaning, len(vm.NICs))
	seen := map[bool]bool{}
	for n, nic := range vm.NICs {
		l := &links[n]
		l.mtu = nic.MTU
		for _, v6 := range []bool{false, true} {
			ofFamily := func(p netip.Prefix) bool { return p.Addr().Is6() == v6 }
			var own []netip.Prefix
			for _, a := range nic.Addresses {
				own = append(own, netip.PrefixFrom(a, a.BitLen()))
			}
			own = slices.DeleteFunc(own, func(p netip.Prefix) bool { return !ofFamily(p) })
			if len(own) == 0 {
				continue
			}
			l.addresses = append(l.addresses, own...)
			l.linkLocal = l.linkLocal || v6
			r := defaultRoute{to: "0.0.0.0/0", via: "169.254.1.1"}
			if v6 {
				r = defaultRoute{to: "::/0", via: "fe80::1"}
			}
			if seen[v6] {
				r.table = 100 + n
				for _, p := range nic.Routes {
					if ofFamily(p) {
						l.rules = append(l.rules, fmt.Sprintf("to %s lookup 254 priority 100", p))
						own = append(own, p)
					}
				}
				for _, p := range own {
					l.rules = append(l.rules, fmt.Sprintf("from %s lookup %d priority %d", p, 100+n, 100+n))
				}
			}
			seen[v6] = true
			l.routes = append(l.routes, r)
		}
		slices.Sort(l.rules)
	}
	return links
}

// readGuest reads a text back.
func readGuest(t *testing.T, f render.Format, text string) []meaning {
	t.Helper()
	switch f {
	case render.Netplan:
		var doc struct{ Network *ethernets }
		require.NoError(t, yaml.UnmarshalWithOptions([]byte(text), &doc, yaml.Strict()))
		require.NotNil(t, doc.Network)
		return doc.Network.meaning(t)
	case render.CloudInit:
		var doc ethernets
		require.NoError(t, yaml.UnmarshalWithOptions([]byte(text), &doc, yaml.Strict()))
		return doc.meaning(t)
	}
	require.Equal(t, render.Networkd, f)
	var links []meaning
	for _, file := range networkFiles(t, text) {
		links = append(links, readNetworkFile(t, file.text))
	}
	return links
}

// ethernets is the version 2 of the network configuration that netplan and
// cloud-init share, as far as it is used.
type ethernets struct {
	Version   int
	Ethernets yaml.MapSlice // for the order
}

type ethernet struct {
	Match     struct{ Macaddress string }
	SetName   string   `yaml:"set-name"`
	DHCP4     *bool    `yaml:"dhcp4"`
	DHCP6     *bool    `yaml:"dhcp6"`
	AcceptRA  *bool    `yaml:"accept-ra"`
	LinkLocal []string `yaml:"link-local"`
	MTU       int      `yaml:"mtu"`
	Gateway4  string   `yaml:"gateway4"`
	Gateway6  string   `yaml:"gateway6"`
	Addresses []string
	Routes    []struct {
		To, Via string
		Scope   string
		OnLink  bool `yaml:"on-link"`
		Table   int
	}
	Policy []struct {
		From, To        string
		Table, Priority int
	} `yaml:"routing-policy"`
}

func (e ethernets) meaning(t *testing.T) []meaning {
	t.Helper()
	require.Equal(t, 2, e.Version)
	no := false
	var links []meaning
	for _, item := range e.Ethernets {
		raw, err := yaml.Marshal(item.Value)
		require.NoError(t, err)
		var link ethernet
		require.NoError(t, yaml.UnmarshalWithOptions(raw, &link, yaml.Strict()))
		require.Equal(t, []*bool{&no, &no, &no}, []*bool{link.DHCP4, link.DHCP6, link.AcceptRA})
		require.NotNil(t, link.LinkLocal)
		m := meaning{match: cmp.Or(link.Match.Macaddress, item.Key.(string)), setName: link.SetName, mtu: link.MTU, linkLocal: slices.Contains(link.LinkLocal, "ipv6")}
		for _, a := range link.Addresses {
			m.addresses = append(m.addresses, netip.MustParsePrefix(a))
		}
		for to, via := range map[string]string{"0.0.0.0/0": link.Gateway4, "::/0": link.Gateway6} {
			if via != "" {
				m.routes = append(m.routes, defaultRoute{to, via, 0})
			}
		}
		slices.SortFunc(m.routes, func(a, b defaultRoute) int { return cmp.Compare(a.via, b.via) })
		for _, r := range link.Routes {
			if r.Via == "0.0.0.0" { // how the gateway is reached
				require.Equal(t, []string{link.Gateway4 + "/32", "link"}, []string{r.To, r.Scope})
				continue
			}
			require.True(t, r.OnLink, "%+v", r)
			m.routes = append(m.routes, defaultRoute{r.To, r.Via, r.Table})
		}
		for _, r := range link.Policy {
			m.rules = append(m.rules, ruleWords(r.From, r.To, r.Table, r.Priority))
		}
		slices.Sort(m.rules)
		links = append(links, m)
	}
	return links
}

func ruleWords(from, to string, table, priority int) string {
	side, p := "from", from
	if from == "" {
		side, p = "to", to
	}
	if !strings.Contains(p, "/") {
		p = fabric.HostPrefix(netip.MustParseAddr(p)).String()
	}
	return fmt.Sprintf("%s %s lookup %d priority %d", side, p, table, priority)
}

// networkFile is one of networkd's.
type networkFile struct{ name, text string }

// networkFiles parts the text of the networkd format at the lines that name
// files.
func networkFiles(t *testing.T, text string) []networkFile {
	t.Helper()
	const dir = "# /etc/systemd/network/"
	head, rest, found := strings.Cut(text, "\n"+dir)
	require.True(t, found)
	for line := range strings.Lines(head) {
		require.True(t, strings.HasPrefix(line, "#") || line == "\n", line)
	}
	var files []networkFile
	for part := range strings.SplitSeq(rest, "\n"+dir) {
		name, content, _ := strings.Cut(part, "\n")
		require.Regexp(t, `^10-vmfabric-[A-Za-z0-9._-]+\.network$`, name)
		files = append(files, networkFile{name, content})
	}
	return files
}

// readNetworkFile reads a file of systemd.network(5), ours or one that netplan
// made.
func readNetworkFile(t *testing.T, text string) meaning {
	t.Helper()
	m := meaning{linkLocal: true} // networkd's default
	sections := strings.Split("\n"+text, "\n[")
	for _, section := range sections[1:] {
		title, body, _ := strings.Cut(section, "]\n")
		v := map[string][]string{}
		for line := range strings.Lines(body) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			key, value, found := strings.Cut(line, "=")
			require.True(t, found, line)
			v[key] = append(v[key], value)
		}
		m.section(t, title, v)
	}
	slices.Sort(m.rules)
	return m
}

func (m *meaning) section(t *testing.T, title string, v map[string][]string) {
	t.Helper()
	one := func(key, otherwise string) string {
		if len(v[key]) == 0 {
			return otherwise
		}
		require.Len(t, v[key], 1, key)
		return v[key][0]
	}
	number := func(key string) int {
		n, err := strconv.Atoi(one(key, "0"))
		require.NoError(t, err)
		return n
	}
	switch title {
	case "Match":
		m.match = strings.ToLower(one("Name", one("MACAddress", one("PermanentMACAddress", ""))))
	case "Link":
		m.mtu = number("MTUBytes")
	case "Network":
		require.Equal(t, "no", one("DHCP", "no"))
		require.Equal(t, "no", one("IPv6AcceptRA", "unset"))
		m.linkLocal = one("LinkLocalAddressing", "ipv6") == "ipv6"
		for _, a := range v["Address"] {
			m.addresses = append(m.addresses, netip.MustParsePrefix(a))
		}
	case "Route":
		require.Contains(t, []string{"yes", "true"}, one("GatewayOnLink", "no"))
		m.routes = append(m.routes, defaultRoute{one("Destination", ""), one("Gateway", ""), number("Table")})
	case "RoutingPolicyRule":
		m.rules = append(m.rules, ruleWords(one("From", ""), one("To", ""), number("Table"), number("Priority")))
	default:
		require.Fail(t, "unknown section", title)
	}
}
