package render

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/vmfabric/vmfabric/fabric"
)

// EtcdPart is one of the files and scripts by which a member of etcd is configured.
type EtcdPart string

// The parts.
const (
	EtcdEnvironment  EtcdPart = "environment"  // /etc/default/etcd
	EtcdUnit         EtcdPart = "unit"         // a drop-in of the systemd unit
	EtcdCertificates EtcdPart = "certificates" // makes the authority and all certificates
	EtcdUsers        EtcdPart = "users"        // gives each node a user, and turns authentication on
	EtcdBackup       EtcdPart = "backup"       // saves a backup
	EtcdRestore      EtcdPart = "restore"      // starts the member anew from a backup
	EtcdReplace      EtcdPart = "replace"      // starts the member anew that lost its disk
)

// EtcdParts lists the parts.
var EtcdParts = []EtcdPart{EtcdEnvironment, EtcdUnit, EtcdCertificates, EtcdUsers, EtcdBackup, EtcdRestore, EtcdReplace}

// ParseEtcdPart reads the name of a part.
func ParseEtcdPart(s string) (EtcdPart, error) {
	if p := EtcdPart(s); slices.Contains(EtcdParts, p) {
		return p, nil
	}
	var all []string
	for _, p := range EtcdParts {
		all = append(all, string(p))
	}
	return "", fmt.Errorf("part %q is not one of %s", s, strings.Join(all, ", "))
}

// Where a member has its files.
const (
	EtcdEnvironmentFile = "/etc/default/etcd"
	EtcdUnitFile        = "/etc/systemd/system/etcd.service.d/vmfabric.conf"
	etcdFiles           = "/etc/etcd"
	etcdData            = "/var/lib/etcd/vmfabric"
	etcdBackups         = "/var/backups/etcd"
	etcdMetrics         = "http://127.0.0.1:2381"
)

// Etcd returns a part of the configuration of a member of the etcd that has the cluster's
// registry. The member is the machine with that name in the cluster, whose address is in
// an endpoint, or else the host of an endpoint. restored is how often the etcd was
// restored from a backup: each time its members get another token.
//
// The error says what the cluster lacks: three members, or https.
func Etcd(c fabric.Cluster, name string, part EtcdPart, restored int) (string, error) {
	m, err := newEtcd(c, name, restored)
	if err != nil {
		return "", err
	}
	t := etcdTexts[part]
	switch {
	case t == nil:
		_, err := ParseEtcdPart(string(part))
		return "", err
	case part == EtcdReplace && len(m.Members) == 1:
		return "", fmt.Errorf("%s is the only member of etcd: no other one has what it had; restore a backup (--part restore)", m.Name)
	}
	var b strings.Builder
	if err := t.Execute(&b, m); err != nil {
		return "", err
	}
	return b.String(), nil
}

// etcdConfig is the data of the templates.
type etcdConfig struct {
	Cluster fabric.Cluster
	etcdMember
	Members          []etcdMember
	Token, Next      string // that its members know each other by, now and after a restore
	Root             string // the beginning of the registry's keys
	Files, Data      string
	Backups, Metrics string
	EnvironmentFile  string
	Initial, Clients string
	Others           string // the clients' URLs of the other members
}

// etcdMember is a member of etcd.
type etcdMember struct {
	Name   string
	Client string // the URL for clients
	Peer   string // the URL for the other members
	Listen string // what the addresses to listen at begin with, for a host that is no address
	SAN    string // the name in its certificate
	host   string
}

func newEtcd(c fabric.Cluster, name string, restored int) (etcdConfig, error) {
	if c.Registry.Etcd == nil {
		return etcdConfig{}, fmt.Errorf("cluster %s names no etcd; name its members under registry.etcd.endpoints", c.Name)
	}
	var errs []error
	for _, p := range c.Validate() {
		errs = append(errs, p)
	}
	if err := errors.Join(errs...); err != nil {
		return etcdConfig{}, err
	}
	conf := c.Registry.Etcd
	m := etcdConfig{
		Cluster: c, Token: etcdToken(c, restored), Next: etcdToken(c, restored+1), Root: conf.Prefix + "/" + c.Name + "/",
		Files: etcdFiles, Data: etcdData, Backups: etcdBackups, Metrics: etcdMetrics, EnvironmentFile: EtcdEnvironmentFile,
	}
	for _, endpoint := range conf.Endpoints {
		member, err := etcdMemberOf(c, endpoint)
		if err != nil {
			return etcdConfig{}, err
		}
		m.Members = append(m.Members, member)
	}
	if n := len(m.Members); n == 2 {
		return etcdConfig{}, errors.New("two members of etcd are worse than one: either that is down stops both; name a third machine under registry.etcd.endpoints")
	}
	i := slices.IndexFunc(m.Members, func(o etcdMember) bool { return o.Name == name || o.host == name })
	if i < 0 {
		var have []string
		for _, o := range m.Members {
			have = append(have, o.Name)
		}
		return etcdConfig{}, fmt.Errorf("%q is no member of etcd by registry.etcd.endpoints; its members are %s", name, strings.Join(have, ", "))
	}
	m.etcdMember = m.Members[i]
	var initial, clients, others []string
	for _, o := range m.Members {
		initial, clients = append(initial, o.Name+"="+o.Peer), append(clients, o.Client)
		if o != m.etcdMember {
			others = append(others, o.Client)
		}
	}
	m.Initial, m.Clients, m.Others = strings.Join(initial, ","), strings.Join(clients, ","), strings.Join(others, ",")
	return m, nil
}

func etcdToken(c fabric.Cluster, restored int) string {
	return fmt.Sprintf("vmfabric-%s-%d", c.Name, restored+1)
}

// etcdMemberOf gives the member that has an endpoint. Its name is that of the machine of
// the cluster with the address, or else the endpoint's host.
func etcdMemberOf(c fabric.Cluster, endpoint string) (etcdMember, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return etcdMember{}, err
	}
	if u.Scheme != "https" {
		return etcdMember{}, fmt.Errorf("%s: without TLS anybody who can reach it gives and takes addresses; write https under registry.etcd.endpoints, and ca_file, cert_file and key_file", endpoint)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 65535 {
		return etcdMember{}, fmt.Errorf("%s: no port is left for the other members, which is the next one; choose 2379", endpoint)
	}
	at := func(host string, port uint64) string {
		return "https://" + net.JoinHostPort(host, strconv.FormatUint(port, 10))
	}
	m := etcdMember{Name: u.Hostname(), host: u.Hostname(), Client: at(u.Hostname(), port), Peer: at(u.Hostname(), port+1), SAN: "DNS:" + u.Hostname()}
	listens := "0.0.0.0" // etcd takes no name there
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		listens, m.SAN = addr.String(), "IP:"+addr.String()
		m.Name = cmp.Or(machineAt(c, addr), m.Name)
	}
	m.Listen = listens
	return m, nil
}

// machineAt gives the name of the reflector, core gateway or node with an address.
func machineAt(c fabric.Cluster, addr netip.Addr) string {
	for _, r := range c.Reflectors {
		if r.Address == addr {
			return r.Name
		}
	}
	for _, g := range c.Core {
		if g.Address == addr {
			return g.Name
		}
	}
	for _, n := range c.Nodes {
		if n.Address == addr || n.Address6 == addr {
			return n.Name
		}
	}
	return ""
}

// ListenClient and ListenPeer are where the member listens.
func (m etcdMember) ListenClient() string { return listenURL(m.Client, m.Listen) }

// ListenPeer is ListenClient for the other members.
func (m etcdMember) ListenPeer() string { return listenURL(m.Peer, m.Listen) }

func listenURL(of, host string) string {
	return "https://" + net.JoinHostPort(host, of[strings.LastIndex(of, ":")+1:])
}

var etcdTexts = func() map[EtcdPart]*template.Template {
	all := map[EtcdPart]*template.Template{}
	for part, text := range map[EtcdPart]string{
		EtcdEnvironment: etcdEnvironment, EtcdUnit: etcdUnit, EtcdCertificates: etcdCertificates,
		EtcdUsers: etcdUsers, EtcdBackup: etcdBackup, EtcdRestore: etcdRestore, EtcdReplace: etcdReplace,
	} {
		all[part] = template.Must(template.New(string(part)).Parse(strings.TrimPrefix(text, "\n")))
	}
	return all
}()

// The values have nothing behind them: etcd would read a comment as a part of them.
const etcdEnvironment = `
# Member {{.Name}} of the etcd that has the registry of cluster {{.Cluster.Name}}.
# Made by vmfabric render etcd --for {{.Name}}
ETCD_NAME={{.Name}}
ETCD_DATA_DIR={{.Data}}
ETCD_LISTEN_CLIENT_URLS={{.ListenClient}}
ETCD_ADVERTISE_CLIENT_URLS={{.Client}}
ETCD_LISTEN_PEER_URLS={{.ListenPeer}}
ETCD_INITIAL_ADVERTISE_PEER_URLS={{.Peer}}
ETCD_INITIAL_CLUSTER={{.Initial}}
# It counts the restores from backups.
ETCD_INITIAL_CLUSTER_TOKEN={{.Token}}
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_LISTEN_METRICS_URLS={{.Metrics}}
ETCD_CERT_FILE={{.Files}}/member.crt
ETCD_KEY_FILE={{.Files}}/member.key
ETCD_TRUSTED_CA_FILE={{.Files}}/ca.crt
ETCD_CLIENT_CERT_AUTH=true
ETCD_PEER_CERT_FILE={{.Files}}/member.crt
ETCD_PEER_KEY_FILE={{.Files}}/member.key
ETCD_PEER_TRUSTED_CA_FILE={{.Files}}/ca.crt
ETCD_PEER_CLIENT_CERT_AUTH=true
# A member that was cut off disturbs nobody when it is back.
ETCD_PRE_VOTE=true
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=24h
ETCD_QUOTA_BACKEND_BYTES=2147483648
`

const etcdUnit = `
# {{/**/}}` + EtcdUnitFile + `
# Made by vmfabric render etcd --for {{.Name}} --part unit
[Unit]
# It listens at an address that the network must have.
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=2s
# The first member of a new etcd is ready when the second one is there.
TimeoutStartSec=infinity
# Guests that start wait for its disk.
IOSchedulingClass=best-effort
IOSchedulingPriority=0
OOMScoreAdjust=-900
`

const etcdCertificates = `
#!/bin/sh
# Makes, in this folder, the authority of the etcd that has the registry of cluster
# {{.Cluster.Name}}, and the certificates of its members, of the nodes and of the operator
# (root). What is there already stays: run it again after a node is added, or remove the
# .crt that is to be made anew. Keep ca.key off the machines.
set -eu
umask 077
[ -e ca.crt ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7300 \
	-subj "/CN=etcd of {{.Cluster.Name}}" -keyout ca.key -out ca.crt
sign() { # FILE CN EXTENSIONS
	[ ! -e "$1.crt" ] || return 0
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
	printf '%s\n' "keyUsage=digitalSignature" "$3" >"$1.ext"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 1825 -extfile "$1.ext" -out "$1.crt"
	rm "$1.csr" "$1.ext"
}
# To /etc/etcd/member.crt and member.key of each, with ca.crt; the key is for the user etcd alone.
{{- range .Members}}
sign member-{{.Name}} {{.Name}} 'extendedKeyUsage=serverAuth,clientAuth
subjectAltName={{.SAN}}'
{{- end}}
# To the files that cert_file and key_file name on each node.
{{- range .Cluster.Nodes}}
sign node-{{.Name}} {{.Name}} extendedKeyUsage=clientAuth
{{- end}}
# To {{.Files}}/root.crt and root.key of each member, for root alone: backups, users.
sign root root extendedKeyUsage=clientAuth
`

const etcdCtl = `
set -eu
export ETCDCTL_API=3 ETCDCTL_CACERT={{.Files}}/ca.crt ETCDCTL_CERT={{.Files}}/root.crt ETCDCTL_KEY={{.Files}}/root.key
`

const etcdUsers = `
#!/bin/sh
# Lets each node read and write the registry of cluster {{.Cluster.Name}}, and nobody else.
# Run it on one member, and again after a node is added.` + etcdCtl + `
export ETCDCTL_ENDPOINTS={{.Clients}}
once() {
	said=$(etcdctl "$@" 2>&1) && return
	case $said in
	*"already exists"* | *"already granted"*) ;;
	*) echo "etcdctl $*: $said" >&2 && exit 1 ;;
	esac
}
once role add vmfabric-{{.Cluster.Name}}
once role grant-permission --prefix=true vmfabric-{{.Cluster.Name}} readwrite {{.Root}}
{{- range .Cluster.Nodes}}
once user add {{.Name}} --no-password
once user grant-role {{.Name}} vmfabric-{{$.Cluster.Name}}
{{- end}}
once role add root
once user add root --no-password
once user grant-role root root
once auth enable
`

const etcdBackup = `
#!/bin/sh
# Saves what the etcd of cluster {{.Cluster.Name}} has, and keeps the last 14 backups. Run it
# daily on one member, as {{/**/}}/etc/cron.daily/vmfabric-etcd.` + etcdCtl + `
umask 077
mkdir -p {{.Backups}}
cd {{.Backups}}
file={{.Cluster.Name}}-$(date -u +%Y%m%dT%H%M%SZ).db
etcdctl --endpoints {{.Client}} snapshot save "$file" >/dev/null
ls -1r {{.Cluster.Name}}-*.db | tail -n +15 | while read -r old; do rm -- "$old"; done
echo "{{.Backups}}/$file"
`

const etcdRestore = `
#!/bin/sh
# Starts member {{.Name}} anew with what a backup has: vmfabric-etcd-restore FILE. Run it on all
# members, each with its own script and the same file, before any agent is told: vmfabric registry adopt.
set -eu
file=$1
test -r "$file"
systemctl stop etcd
[ ! -e {{.Data}} ] || mv {{.Data}} {{.Data}}.before-$(date -u +%Y%m%dT%H%M%SZ)
tool=etcdctl
! command -v etcdutl >/dev/null || tool=etcdutl
ETCDCTL_API=3 $tool snapshot restore "$file" --name {{.Name}} --data-dir {{.Data}} \
	--initial-cluster {{.Initial}} \
	--initial-cluster-token {{.Next}} --initial-advertise-peer-urls {{.Peer}}
chown -R etcd: {{.Data}}
sed -i -e 's|^ETCD_INITIAL_CLUSTER_TOKEN=.*|ETCD_INITIAL_CLUSTER_TOKEN={{.Next}}|' \
	-e 's|^ETCD_INITIAL_CLUSTER_STATE=.*|ETCD_INITIAL_CLUSTER_STATE=new|' {{.EnvironmentFile}}
systemctl start --no-block etcd
`

const etcdReplace = `
#!/bin/sh
# Makes this machine member {{.Name}} of the etcd of cluster {{.Cluster.Name}}, in place of one that
# lost its disk. The other members must run. It needs their certificates and {{.EnvironmentFile}}.` + etcdCtl + `
export ETCDCTL_ENDPOINTS={{.Others}}
systemctl stop etcd
n=0 # the others may be about to elect a leader
until etcdctl member list | grep -q ', unstarted, .* {{.Peer}},'; do
	n=$((n + 1))
	[ $n -le 10 ] || exit 1
	id=$(etcdctl member list | sed -n 's|^\([0-9a-f]*\), started, .* {{.Peer}},.*|\1|p')
	[ -z "$id" ] || etcdctl member remove "$id" || true
	etcdctl member add {{.Name}} --peer-urls={{.Peer}} || sleep 1
done
rm -rf {{.Data}}
sed -i 's|^ETCD_INITIAL_CLUSTER_STATE=.*|ETCD_INITIAL_CLUSTER_STATE=existing|' {{.EnvironmentFile}}
systemctl start --no-block etcd
`
