package plugins

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// batch is how many routes one message has: gRPC servers take 4 MB.
const batch = 5000

// Speaker is a [fabric.Speaker] in a plugin. Changed also wakes when the plugin was
// started anew, or may have had changes that did not arrive.
type Speaker struct {
	supervisor
	changed signal.Signal
}

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)

// OpenSpeaker starts a plugin that is a speaker, and keeps it running until Close.
// It returns when the plugin has answered the handshake, or with the reason why
// that failed. ctx is only for the start.
func OpenSpeaker(ctx context.Context, p Program, opts ...Option) (*Speaker, error) {
	s := &Speaker{changed: signal.New()}
	s.attend = s.listen
	if err := s.open(ctx, p, speaker, opts); err != nil {
		return nil, err
	}
	return s, nil
}

// Actual implements [fabric.Speaker].
func (s *Speaker) Actual(ctx context.Context) (routes []fabric.Route, err error) {
	var reply *pb.ActualReply
	err = s.call(ctx, "list routes", func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewSpeakerClient(c).Actual(ctx, &pb.ActualRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	if routes, err = routesIn(reply.GetRoutes()); err != nil {
		return nil, fmt.Errorf("%s: list routes: %w", s.program.name(), err)
	}
	return routes, nil
}

// Put implements [fabric.Speaker].
func (s *Speaker) Put(ctx context.Context, routes ...fabric.Route) error {
	for part := range slices.Chunk(routes, batch) {
		err := s.call(ctx, "announce "+part[0].Prefix.String(), func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := pb.NewSpeakerClient(c).Put(ctx, &pb.PutRequest{Routes: routesOut(part)})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove implements [fabric.Speaker].
func (s *Speaker) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	for part := range slices.Chunk(prefixes, batch) {
		err := s.call(ctx, "withdraw "+part[0].String(), func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := pb.NewSpeakerClient(c).Remove(ctx, &pb.RemoveRequest{Prefixes: textOut(part)})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Changed implements [fabric.Speaker].
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// Sessions implements [fabric.Speaker]; it has none if the plugin does not
// implement it. It does not wait for a plugin that is down.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	if _, _, err := s.now(); err != nil {
		return nil, err
	}
	var reply *pb.SessionsReply
	err := s.call(ctx, "list sessions", func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewSpeakerClient(c).Sessions(ctx, &pb.SessionsRequest{})
		return optional(err)
	})
	if err != nil {
		return nil, err
	}
	var sessions []fabric.Session
	for _, one := range reply.GetSessions() {
		sessions = append(sessions, sessionIn(one))
	}
	return sessions, nil
}

// Advertisements implements [fabric.Speaker]; the error is [errors.ErrUnsupported]
// if the plugin does not implement it. It does not wait for a plugin that is down.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	if _, _, err := s.now(); err != nil {
		return nil, err
	}
	var reply *pb.AdvertisementsReply
	supported := true
	err := s.call(ctx, "list the peers that were sent "+prefix.String(), func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewSpeakerClient(c).Advertisements(ctx, &pb.AdvertisementsRequest{Prefix: prefix.String()})
		supported = status.Code(err) != codes.Unimplemented
		return optional(err)
	})
	if err != nil {
		return nil, err
	}
	if !supported {
		return nil, fmt.Errorf("%s: it cannot say which prefixes it sends: %w", s.program.name(), errors.ErrUnsupported)
	}
	return advertisementsIn(reply.GetAdvertisements()), nil
}

// Received implements [fabric.Speaker]: plugins do not report other nodes' routes.
func (*Speaker) Received(context.Context, ...netip.Prefix) ([]fabric.ReceivedRoute, error) {
	return nil, errors.ErrUnsupported
}

// Competitors implements [fabric.Speaker]: plugins do not report other nodes'
// routes.
func (*Speaker) Competitors() <-chan fabric.Competitor { return nil }

// Diagnose implements [fabric.Diagnoser]: that the plugin is down, or the problems
// that it reports itself.
func (s *Speaker) Diagnose(ctx context.Context) []string {
	if _, _, err := s.now(); err != nil {
		return s.supervisor.Diagnose(ctx)
	}
	// A request for the health of a node does not wait long for one part of it.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var reply *pb.DiagnoseReply
	err := s.call(ctx, "diagnose itself", func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewSpeakerClient(c).Diagnose(ctx, &pb.DiagnoseRequest{})
		return optional(err)
	})
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	for _, problem := range reply.GetProblems() {
		problems = append(problems, oneLine(problem))
	}
	return problems
}

// optional drops the error that a plugin does not have an optional method.
func optional(err error) error {
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// listen passes on the plugin's changes, until ctx ends.
func (s *Speaker) listen(ctx context.Context, p *process, again bool) {
	if again {
		s.changed.Send() // the new plugin may have other routes
	}
	rests := backoff.Backoff{First: firstRest, Most: mostRest}
	for {
		began := time.Now()
		err := s.hear(ctx, p, again)
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		s.options.log.Debug("the stream of changes broke", "err", err)
		if time.Since(began) > steady {
			rests.Reset()
		}
		if !rests.Wait(ctx) {
			return
		}
		again = true
	}
}

// hear passes on the changes of one stream. If there was a stream before, changes
// between the two may be lost, so it sends a wake-up.
func (s *Speaker) hear(ctx context.Context, p *process, again bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewSpeakerClient(p.conn).Changed(ctx, &pb.ChangedRequest{})
	if err != nil {
		return err
	}
	if _, err := stream.Header(); err != nil {
		return err
	}
	if again {
		s.changed.Send()
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		s.changed.Send()
	}
}
