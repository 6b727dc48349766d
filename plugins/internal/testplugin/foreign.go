package testplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// foreign is a plugin that was made from plugin.proto without package plugins:
// it has only what it must have, and its answers make no sense. With the
// argument newer it is of the next version of the protocol.
func foreign(arg string) {
	if arg == "newer" {
		goplugin.Serve(&goplugin.ServeConfig{
			HandshakeConfig: goplugin.HandshakeConfig{
				ProtocolVersion: 2, MagicCookieKey: "VMFABRIC_PLUGIN", MagicCookieValue: "5d0f7f3a-1c55-4b6e-9a53-2f8d2a4f6b10",
			},
			Plugins:    goplugin.PluginSet{"any": nonsense{}},
			GRPCServer: goplugin.DefaultGRPCServer,
		})
		return
	}
	l, err := net.Listen("unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "foreign"))
	must(err)
	s := grpc.NewServer()
	must(nonsense{}.GRPCServer(nil, s))
	h := health.NewServer()
	h.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(s, h)
	if arg == "ill" {
		go func() {
			time.Sleep(300 * time.Millisecond)
			h.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		}()
	}
	fmt.Printf("1|1|unix|%s|grpc|\n", l.Addr())
	go func() { must(s.Serve(l)) }()
	_, err = io.Copy(io.Discard, os.Stdin) // which the agent closes
	must(err)
	must(os.WriteFile(filepath.Join(os.Getenv("TESTPLUGIN_DIR"), "ended"), nil, 0o600))
}

type nonsense struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (nonsense) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterPluginServer(s, everything{})
	pb.RegisterSpeakerServer(s, badSpeaker{})
	pb.RegisterResolverServer(s, badResolver{})
	return nil
}

func (nonsense) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin")
}

type everything struct{ pb.UnimplementedPluginServer }

func (everything) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeReply, error) {
	return &pb.DescribeReply{Kinds: []string{"speaker", "resolver", "of-a-later-release"}}, nil
}

type badSpeaker struct{ pb.UnimplementedSpeakerServer }

func (badSpeaker) Actual(context.Context, *pb.ActualRequest) (*pb.ActualReply, error) {
	return &pb.ActualReply{Routes: []*pb.Route{{Prefix: "203.0.113.10/32"}, {Prefix: "203.0.113.300/32"}}}, nil
}

type badResolver struct{ pb.UnimplementedResolverServer }

func (badResolver) Resolve(_ context.Context, r *pb.ResolveRequest) (*pb.ResolveReply, error) {
	switch r.GetVm() {
	case "address":
		return &pb.ResolveReply{Nics: []*pb.Nic{{}, {Addresses: []string{"2001:db8:100::10", "eth0"}}}}, nil
	case "route":
		return &pb.ResolveReply{Nics: []*pb.Nic{{Addresses: []string{"203.0.113.10"}, Routes: []string{"198.51.100.0"}}}}, nil
	}
	return &pb.ResolveReply{}, nil
}
