package e2e

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// router is a reflector, a core gateway or a node's routing daemon.
type router interface {
	Stop() error
	Kill() error
	Routes(ctx context.Context) ([]routers.BGPRoute, error)
	Established(ctx context.Context) (int, error)
}

// startRouter starts what a machine of the cluster runs: a routing daemon with
// its rendered configuration, or the embedded reflector.
func (s *system) startRouter(kind string, h *core.Host) router {
	s.t.Helper()
	if kind == "embedded" {
		return s.embed(h.Name())
	}
	conf, err := render.Router(s.cluster, render.Format(kind), h.Name())
	require.NoError(s.t, err)
	// The lab has no syslog; a test that fails shows what went to stderr.
	conf = strings.Replace(conf, "log syslog all;", "log stderr all; debug protocols { states, events };", 1)
	if s.o.edit != nil {
		conf = s.o.edit(h.Name(), conf)
	}
	var r router
	if kind == "frr" {
		r, err = routers.StartFRR(soon(s.t), h, conf)
	} else {
		var args []string
		if s.o.resumes && s.top.Reflectors[h.Name()] == h {
			args = append(args, "-R")
		}
		r, err = routers.StartBird(soon(s.t), h, conf, args...)
	}
	require.NoError(s.t, err)
	return r
}

// Routes gives none: what the reflector has is seen at the core gateway.
func (r *embedded) Routes(context.Context) ([]routers.BGPRoute, error) { return nil, nil }

// Established counts the sessions that are up.
func (r *embedded) Established(ctx context.Context) (int, error) {
	reply, err := hooks.Call(ctx, r.socket, hooks.Request{Op: hooks.Status})
	if reply.Status == nil {
		return 0, err
	}
	n := 0
	for _, session := range reply.Status.Sessions {
		if session.State == "established" {
			n++
		}
	}
	return n, nil
}

// env tells the plugins where the routing daemon of the node is.
func (a *agent) env() []string {
	return []string{
		"VMFABRIC_BIRD_SOCKET=" + filepath.Join(a.node.Dir(), "bird.ctl"),
		"VMFABRIC_FRR_PATHSPACE=" + strings.ReplaceAll(a.node.Namespace(), ".", "_"),
	}
}
