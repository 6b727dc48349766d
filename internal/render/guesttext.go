package render

import (
	"strings"
	"text/template"
)

// text writes the guest's configuration in a format.
func (g guest) text(f Format) string {
	t := guestTemplates[f]
	body := execute(t.body, g)
	if f == Netplan {
		body = "network:\n" + indent(body)
	}
	return execute(t.head, g) + body
}

// execute fills in a template of this package, which cannot fail.
func execute(t *template.Template, data any) string {
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		panic(err)
	}
	return b.String()
}

// indent moves every line two columns to the right.
func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ") + "\n"
}

var guestTemplates = map[Format]struct{ head, body *template.Template }{
	Netplan:   {guestHead(netplanHead), guestTemplate(ethernets)},
	Ifupdown:  {guestHead(ifupdownHead), guestTemplate(stanzas)},
	Networkd:  {guestHead(networkdHead), guestTemplate(networkFiles)},
	CloudInit: {guestHead(cloudInitHead), guestTemplate(cloudEthernets)},
}

func guestTemplate(text string) *template.Template {
	return template.Must(template.New("guest").Parse(text))
}

// guestHead makes the comment at the start of a text. %q keeps every VM name inside
// its line, for YAML too, which knows more line breaks than ASCII has.
func guestHead(where string) *template.Template {
	return guestTemplate(`# Network of guest {{printf "%q" .VM}} in the fabric.
` + where + `
{{- if .Assumed}}
# {{range $n, $name := .Assumed}}{{if $n}}, {{end}}{{$name}}{{end}}: assumed; where the guest's links have other names, give those.
{{- end}}
{{- if not .DNS}}
# Nameservers: the cluster file names none. Add yours here, or in /etc/resolv.conf.
{{- end}}
`)
}

const netplanHead = `# File: /etc/netplan/50-vmfabric.yaml, owner root, mode 0600. Other files there
# must not configure the same links. To apply it: netplan apply`

const ifupdownHead = `# File: /etc/network/interfaces.d/vmfabric, or a part of /etc/network/interfaces
# where nothing reads that folder. There must be no other stanzas for the same
# links. To apply it: ifup -a (to replace it later, ifdown the links first)
{{- if .DNS}}
# dns-nameservers and dns-search need the package resolvconf; without it, write them
# into /etc/resolv.conf.
{{- end}}`

const networkdHead = `# Files: the line above each names it. Other files in that folder must not match
# the same links. To apply them: networkctl reload`

const cloudInitHead = `# LXD: lxc config set {{.ShellName}} user.network-config - < FILE
#      (on newer LXD also: cloud-init.network-config)
# KVM: the file network-config of a NoCloud seed, beside user-data and meta-data.
# It is applied at the instance's first boot.
{{- if .IPv6MTU}}
# Debian's ifupdown ignores the MTU of a link that has IPv6 alone.
{{- end}}
{{- if .Rules}}
# What comes from an address of a NIC has to leave through that NIC, for which
# netplan alone has the words (table, routing-policy). Where the distribution has
# no netplan, give this guest its network in another format.
{{- end}}`

// nameservers has a link's resolvers and search domains, in netplan's keys.
const nameservers = `    {{- if .DNS}}
    nameservers:
      addresses:
      {{- range .DNS}}
        - "{{.}}"
      {{- end}}
      {{- with .Search}}
      search:
      {{- range .}}
        - "{{.}}"
      {{- end}}{{end}}
    {{- end}}`

// linkKeys begins version 2 of the network configuration, up to a link's addresses.
const linkKeys = `version: 2
ethernets:
{{- range .Links}}
  "{{.ID}}":
    {{- range .Routed}}
    ` + routedLine + `
    {{- end}}
    {{- if .ByMAC}}
    match:
      macaddress: "{{.MAC}}"
    {{- with .Name}}
    set-name: "{{.}}"
    {{- end}}
    {{- end}}
    dhcp4: false
    dhcp6: false
    accept-ra: false
    link-local: [{{if .IPv6}}ipv6{{end}}]
    {{- with .MTU}}
    mtu: {{.}}
    {{- end}}
    addresses:
    {{- range .Families}}{{range .Addresses}}
      - "{{.}}"
    {{- end}}{{end}}`

// ethernets is version 2 of the network configuration in netplan's keys.
const ethernets = linkKeys + `
    routes:
    {{- range .Families}}
      - to: "{{.Default}}"
        via: "{{.Gateway}}"
        on-link: true
        {{- with .Table}}
        table: {{.}}
        {{- end}}
    {{- end}}
` + nameservers + `
    {{- with .Rules}}
    routing-policy:
    {{- range .}}
      - {{.Side}}: "{{.Prefix}}"
        table: {{.Table}}
        priority: {{.Priority}}
    {{- end}}{{end}}
{{- end}}
`

// cloudEthernets is version 2 in keys that every renderer of cloud-init
// understands. Most renderers have no on-link, so the gateway has a route of its
// own. They also take a default route of IPv6 among the routes for a /64.
const cloudEthernets = linkKeys + `
    {{- range .Families}}{{if not .Table}}
    gateway{{.N}}: "{{.Gateway}}"
    {{- end}}{{end}}
    {{- with .CloudRoutes}}
    routes:
    {{- range .}}
      - to: "{{.To}}"
        via: "{{.Via}}"
        {{- if .Table}}
        on-link: true
        table: {{.Table}}
        {{- else if .To.Addr.Is4}}
        scope: link
        {{- end}}
    {{- end}}{{end}}
` + nameservers + `
    {{- with .Rules}}
    routing-policy:
    {{- range .}}
      - {{.Side}}: "{{.Prefix}}"
        table: {{.Table}}
        priority: {{.Priority}}
    {{- end}}{{end}}
{{- end}}
`

const routedLine = `# {{.}} is routed to this guest: put addresses of it on a link of its own.`

// stanzas is interfaces(5). The method static takes one address, and both programs
// know only one stanza for each link and family: commands do the rest. They also
// set the MTU of a link with only IPv6: Debian's ifupdown sets it before the link
// is up, and the kernel forgets it then.
const stanzas = `{{range .Links}}{{$link := .}}
auto {{.Name}}
{{- range .Routed}}
` + routedLine + `
{{- end}}
{{- range $n, $family := .Families}}
{{- if $n}}
{{end}}
iface {{$link.Name}} {{if .IPv6}}inet6{{else}}inet{{end}} static
    address {{(index .Addresses 0).Addr}}
    netmask {{if .IPv6}}128{{else}}255.255.255.255{{end}}
{{- if not $n}}
    {{- with $link.MTU}}
    {{if $family.IPv6}}pre-up ip link set {{$link.Name}} mtu {{.}}{{else}}mtu {{.}}{{end}}
    {{- end}}
    pre-up test ! -f {{$link.AcceptRA}} || echo 0 > {{$link.AcceptRA}}
{{- end}}
{{- if and (not $n) $link.DNS}}
    dns-nameservers{{range $link.DNS}} {{.}}{{end}}
    {{- with $link.Search}}
    dns-search{{range .}} {{.}}{{end}}
    {{- end}}
{{- end}}
{{- range .Commands $link.Name}}
    {{.}}
{{- end}}
{{- end}}
{{end}}`

const networkFiles = `{{range .Links}}
# /etc/systemd/network/10-vmfabric-{{.ID}}.network
{{- range .Routed}}
` + routedLine + `
{{- end}}
[Match]
{{- if .ByMAC}}
MACAddress={{.MAC}}
{{- else}}
Name={{.Name}}
{{- end}}
{{- with .MTU}}

[Link]
MTUBytes={{.}}
{{- end}}

[Network]
DHCP=no
IPv6AcceptRA=no
LinkLocalAddressing={{if .IPv6}}ipv6{{else}}no{{end}}
{{- range .Families}}{{range .Addresses}}
Address={{.}}
{{- end}}{{end}}
{{- range .DNS}}
DNS={{.}}
{{- end}}
{{- with .Search}}
Domains={{range $n, $d := .}}{{if $n}} {{end}}{{$d}}{{end}}
{{- end}}
{{- range .Families}}

[Route]
Destination={{.Default}}
Gateway={{.Gateway}}
GatewayOnLink=yes
{{- with .Table}}
Table={{.}}
{{- end}}
{{- end}}
{{- range .Rules}}

[RoutingPolicyRule]
{{if eq .Side "from"}}From{{else}}To{{end}}={{.Prefix}}
Table={{.Table}}
Priority={{.Priority}}
{{- end}}
{{end}}`
