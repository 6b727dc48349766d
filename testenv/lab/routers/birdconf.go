package routers

// Bird returns the reflector's configuration in the language of BIRD 2.
func (r Reflector) Bird() string { return render(birdReflector, r.withDefaults()) }

// Bird returns the core gateway's configuration in the language of BIRD 2.
func (c CoreGateway) Bird() string { return render(birdCore, c.withDefaults()) }

// Bird returns the announcer's configuration in the language of BIRD 2.
func (a Announcer) Bird() string { return render(birdAnnouncer, a.withDefaults()) }

// birdCommon is the configuration that all roles share. "direct" makes the sessions
// single hop; BIRD's default for iBGP is multihop. BFD then uses the port that
// others expect, and the core gateway may use next hops as neighbours.
const birdCommon = `log stderr all;
debug protocols { states };
router id {{.RouterID}};
protocol device { scan time 10; }
protocol bfd { interface "eth0" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }
template bgp session {
	local as {{.ASN}};
	direct;
	hold time {{seconds .Hold}}; keepalive time {{third .Hold}};
	connect retry time 1; connect delay time 1; error wait time 1, 5; error forget time 10;
	graceful restart on; graceful restart time {{seconds .Restart}};
	{{- if .Password}}
	password "{{.Password}}";
	{{- end}}
`

var birdReflector = confTemplate("bird reflector", birdCommon+`
	{{- if .LongLived}}
	long lived graceful restart on; long lived stale time {{seconds .LongLived}};
	{{- else}}
	long lived graceful restart aware;
	{{- end}}
	rr client; rr cluster id {{.ClusterID}};
	passive on;
	ipv4 { import all; export all; add paths on; };
	ipv6 { import all; export all; add paths on; };
}
{{range $n, $addr := .Cores -}}
protocol bgp core{{$n}} from session { neighbor {{$addr}} as {{$.ASN}}; }
{{end -}}
{{range $n, $prefix := .Clients -}}
protocol bgp clients{{$n}} from session {
	neighbor range {{$prefix}} as {{$.ASN}};
	dynamic name "client{{$n}}_";
	{{- if $.BFD}}
	bfd on;
	{{- end}}
}
{{end -}}
`)

var birdCore = confTemplate("bird core", `protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; scan time 60; }
protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; scan time 60; }
`+birdCommon+`
	{{- if .LongLived}}
	long lived graceful restart on; long lived stale time {{seconds .LongLived}};
	{{- end}}
	{{- if .BFD}}
	bfd on;
	{{- end}}
	ipv4 { import all; export none; gateway direct; add paths rx; };
	ipv6 { import all; export none; gateway direct; add paths rx; };
}
{{range $n, $addr := .Reflectors -}}
protocol bgp rr{{$n}} from session { neighbor {{$addr}} as {{$.ASN}}; }
{{end -}}
`)

var birdAnnouncer = confTemplate("bird announcer", `protocol static announced4 { ipv4; {{range .Routes}}{{if is4 .}}route {{.}} blackhole; {{end}}{{end}}}
protocol static announced6 { ipv6; {{range .Routes}}{{if not (is4 .)}}route {{.}} blackhole; {{end}}{{end}}}
{{- range $family := families}}
filter announce_{{.}} {
	if source != RTS_STATIC then reject;
	{{range $.Communities}}{{addCommunity .}} {{end}}
	bgp_local_pref = {{$.LocalPref}};
	{{- with $.Hop .}}
	bgp_next_hop = {{.}};
	{{- end}}
	accept;
}
{{- end}}
`+birdCommon+`
	{{- if .BFD}}
	bfd on;
	{{- end}}
	{{- range $family := families}}
	{{.}} { import none; export filter announce_{{.}};{{if not ($.Hop .)}} next hop self;{{end}} };
	{{- end}}
}
{{range $n, $addr := .Reflectors -}}
protocol bgp rr{{$n}} from session { neighbor {{$addr}} as {{$.ASN}}; }
{{end -}}
`)
