package main

import (
	"context"
	"errors"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// foreign is a plugin that was made from plugin.proto without package plugins:
// it has only what it must have, and its answers make no sense. With the
// argument newer it is of the next version of the protocol.
func foreign(arg string) {
	version := uint(1)
	if arg == "newer" {
		version = 2
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: version, MagicCookieKey: "VMFABRIC_PLUGIN", MagicCookieValue: "5d0f7f3a-1c55-4b6e-9a53-2f8d2a4f6b10",
		},
		Plugins:    goplugin.PluginSet{"any": nonsense{}},
		GRPCServer: goplugin.DefaultGRPCServer,
	})
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
