package plugins

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
	"github.com/vmfabric/vmfabric/internal/signal"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// services registers the parts of a plugin with its server.
type services struct {
	goplugin.NetRPCUnsupportedPlugin
	config Config
}

var _ goplugin.GRPCPlugin = services{}

func (s services) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	pb.RegisterPluginServer(g, pluginService{kinds: s.config.kinds()})
	if s.config.Speaker != nil {
		pb.RegisterSpeakerServer(g, &speakerService{speaker: s.config.Speaker, missed: signal.New()})
	}
	if s.config.Resolver != nil {
		pb.RegisterResolverServer(g, resolverService{resolver: s.config.Resolver})
	}
	if s.config.Observer != nil {
		pb.RegisterObserverServer(g, observerService{observer: s.config.Observer})
	}
	return nil
}

func (services) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the plugin's side")
}

// failure turns the error of a call into the one that the agent gets: its text, in
// one line.
func failure(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Unknown, oneLine(err.Error()))
}

// oneLine returns a text in one line, of the UTF-8 that gRPC takes.
func oneLine(s string) string { return strings.ToValidUTF8(oneline.Of(s), "?") }

type pluginService struct {
	pb.UnimplementedPluginServer
	kinds []kind
}

func (p pluginService) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeReply, error) {
	reply := &pb.DescribeReply{}
	for _, k := range p.kinds {
		reply.Kinds = append(reply.Kinds, string(k))
	}
	return reply, nil
}

type speakerService struct {
	pb.UnimplementedSpeakerServer
	speaker fabric.Speaker

	listening sync.Mutex    // held by the one call of Changed that gets the changes
	missed    signal.Signal // a change that could not be sent
}

func (s *speakerService) Actual(ctx context.Context, _ *pb.ActualRequest) (*pb.ActualReply, error) {
	routes, err := s.speaker.Actual(ctx)
	if err != nil {
		return nil, failure(err)
	}
	return &pb.ActualReply{Routes: routesOut(routes)}, nil
}

func (s *speakerService) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutReply, error) {
	routes, err := routesIn(r.GetRoutes())
	if err == nil {
		err = s.speaker.Put(ctx, routes...)
	}
	return &pb.PutReply{}, failure(err)
}

func (s *speakerService) Remove(ctx context.Context, r *pb.RemoveRequest) (*pb.RemoveReply, error) {
	prefixes, err := textIn(r.GetPrefixes(), netip.ParsePrefix, "a prefix")
	if err == nil {
		err = s.speaker.Remove(ctx, prefixes...)
	}
	return &pb.RemoveReply{}, failure(err)
}

// Changed passes wake-ups on. Two calls would take them from each other, so a new
// call waits until the earlier one has ended. It then says by its header that it
// listens.
func (s *speakerService) Changed(_ *pb.ChangedRequest, stream grpc.ServerStreamingServer[pb.Change]) error {
	s.listening.Lock()
	defer s.listening.Unlock()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.missed:
		case <-s.speaker.Changed():
		}
		if err := stream.Send(&pb.Change{}); err != nil {
			s.missed.Send()
			return err
		}
	}
}

func (s *speakerService) Sessions(ctx context.Context, r *pb.SessionsRequest) (*pb.SessionsReply, error) {
	sessions, err := s.speaker.Sessions(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return s.UnimplementedSpeakerServer.Sessions(ctx, r)
	}
	if err != nil {
		return nil, failure(err)
	}
	reply := &pb.SessionsReply{}
	for _, one := range sessions {
		reply.Sessions = append(reply.Sessions, sessionOut(one))
	}
	return reply, nil
}

func (s *speakerService) Advertisements(ctx context.Context, r *pb.AdvertisementsRequest) (*pb.AdvertisementsReply, error) {
	prefix, err := netip.ParsePrefix(r.GetPrefix())
	if err != nil {
		return nil, failure(fmt.Errorf("%.60q is not a prefix", r.GetPrefix()))
	}
	all, err := s.speaker.Advertisements(ctx, prefix)
	if errors.Is(err, errors.ErrUnsupported) {
		return s.UnimplementedSpeakerServer.Advertisements(ctx, r)
	}
	if err != nil {
		return nil, failure(err)
	}
	return &pb.AdvertisementsReply{Advertisements: advertisementsOut(all)}, nil
}

func (s *speakerService) Diagnose(ctx context.Context, _ *pb.DiagnoseRequest) (*pb.DiagnoseReply, error) {
	reply := &pb.DiagnoseReply{}
	for _, problem := range s.speaker.Diagnose(ctx) {
		reply.Problems = append(reply.Problems, oneLine(problem))
	}
	return reply, nil
}

type resolverService struct {
	pb.UnimplementedResolverServer
	resolver fabric.Resolver
}

func (s resolverService) Resolve(ctx context.Context, r *pb.ResolveRequest) (*pb.ResolveReply, error) {
	q, err := queryIn(r)
	if err != nil {
		return nil, failure(err)
	}
	nics, err := s.resolver.Resolve(ctx, q)
	if err != nil {
		return nil, failure(err)
	}
	return &pb.ResolveReply{Nics: nicsOut(nics)}, nil
}

type observerService struct {
	pb.UnimplementedObserverServer
	observer fabric.Observer
}

func (s observerService) Observe(ctx context.Context, r *pb.ObserveRequest) (*pb.ObserveReply, error) {
	e, err := eventIn(r.GetEvent())
	if err == nil {
		err = s.observer.Observe(ctx, e)
	}
	return &pb.ObserveReply{}, failure(err)
}
