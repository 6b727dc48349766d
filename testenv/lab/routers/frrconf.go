package routers

// In these configurations neighbours join a group when the group is complete:
// FRR resets a neighbour for each change to its group, and waits longer with
// each reset.

// FRR returns the reflector's configuration in the language of FRR.
func (r Reflector) FRR() string { return render(frrReflector, r.withDefaults()) }

// FRR returns the core gateway's configuration in the language of FRR.
func (c CoreGateway) FRR() string { return render(frrCore, c.withDefaults()) }

var frrReflector = confTemplate("frr reflector", `no ip forwarding
no ipv6 forwarding
{{if .BFD}}bfd
 profile lab
  detect-multiplier 3
  receive-interval 100
  transmit-interval 100
{{end}}router bgp {{.ASN}}
 bgp router-id {{.RouterID}}
 bgp cluster-id {{.ClusterID}}
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart restart-time {{seconds .Restart}}
 {{if .LongLived}}bgp long-lived-graceful-restart stale-time {{seconds .LongLived}}{{end}}
 timers bgp {{third .Hold}} {{seconds .Hold}}
 bgp listen limit 500
{{- range $group := groups .}}
 neighbor {{$group}} peer-group
 neighbor {{$group}} remote-as {{$.ASN}}
 neighbor {{$group}} passive
 {{if $.Password}}neighbor {{$group}} password {{$.Password}}{{end}}
{{- end}}
 {{if .BFD}}neighbor clients bfd profile lab{{end}}
{{- range $family := families}}
 address-family {{$family}} unicast
{{- range $group := groups $}}
  neighbor {{$group}} activate
  neighbor {{$group}} route-reflector-client
  neighbor {{$group}} addpath-tx-all-paths
{{- end}}
 exit-address-family
{{- end}}
{{- range .Clients}}
 bgp listen range {{.}} peer-group clients
{{- end}}
{{- range .Cores}}
 neighbor {{.}} peer-group cores
{{- end}}
`)

// The route map makes FRR use the announced IPv6 next hop, and not the link-local
// one that may come with it.
var frrCore = confTemplate("frr core", `route-map global permit 10
 set ipv6 next-hop prefer-global
exit
{{if .BFD}}bfd
 profile lab
  detect-multiplier 3
  receive-interval 100
  transmit-interval 100
{{end}}router bgp {{.ASN}}
 bgp router-id {{.RouterID}}
 no bgp default ipv4-unicast
 bgp graceful-restart
 {{if .LongLived}}bgp long-lived-graceful-restart stale-time {{seconds .LongLived}}{{end}}
 timers bgp {{third .Hold}} {{seconds .Hold}}
 neighbor rr peer-group
 neighbor rr remote-as {{.ASN}}
 neighbor rr timers connect 1
 {{if .Password}}neighbor rr password {{.Password}}{{end}}
 {{if .BFD}}neighbor rr bfd profile lab{{end}}
{{- range $family := families}}
 address-family {{$family}} unicast
  neighbor rr activate
  {{if eq $family "ipv6"}}neighbor rr route-map global in{{end}}
 exit-address-family
{{- end}}
{{- range .Reflectors}}
 neighbor {{.}} peer-group rr
{{- end}}
`)
