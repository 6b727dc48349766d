package plugins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/internal/signal"
	"github.com/vmfabric/vmfabric/internal/trusted"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// process is one run of a plugin, from its handshake to its end.
type process struct {
	child  *child
	client *goplugin.Client
	conn   *grpc.ClientConn

	socketDir string

	hung    chan string   // why it counts as hanging
	doubt   signal.Signal // a call could not reach it
	strikes atomic.Int32  // calls in a row whose callers gave up

	mu    sync.Mutex
	conns []*grpc.ClientConn // all connections that go-plugin made: it forgets one if a later step fails
}

const (
	enoughStrikes = 3                      // so many are no accident
	dying         = 200 * time.Millisecond // from a broken connection to the end of a process that dies
	farewell      = 4 * time.Second        // for an orderly end: plugins are promised two seconds, on a machine that has time for them
)

// start runs the program and makes the handshake. It refuses a program that another
// user could change. The error says for people what is wrong with the plugin.
func start(ctx context.Context, program Program, k kind, o options) (*process, error) {
	if bad, ok := errors.AsType[*trusted.Error](trusted.Check(program.Path)); ok {
		return nil, fmt.Errorf("%v: %s", program, bad.Text())
	}
	ctx, cancel := context.WithTimeout(ctx, o.times.Start)
	defer cancel()
	cmd := &exec.Cmd{Path: program.Path, Args: append([]string{program.Path}, program.Args...), Env: program.environ()}
	p := &process{child: newChild(cmd, o.log), hung: make(chan string, 1), doubt: signal.New()}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          goplugin.PluginSet{"vmfabric": services{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           quiet(o.log),
		SyncStdout:       &lineWriter{log: o.log},
		SyncStderr:       &lineWriter{log: o.log},
		GRPCDialOptions:  []grpc.DialOption{grpc.WithChainStreamInterceptor(p.noteConn)},
		StartTimeout:     o.times.Start + time.Second, // ctx ends first
		SkipHostEnv:      true,                        // it is in cmd already, where the program's own variables override it
		RunnerFunc: func(_ hclog.Logger, spec *exec.Cmd, socketDir string) (runner.Runner, error) {
			p.socketDir = socketDir
			cmd.Env = append(cmd.Env, spec.Env...)
			return p.child, nil
		},
	})
	stop := context.AfterFunc(ctx, p.child.kill)
	err := p.shakeHands(ctx, k)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		// The connection stays: no other one is made, and if this process is
		// killed, nothing else removes the directory.
		_ = os.RemoveAll(p.socketDir)
		return p, nil
	}
	timeout := errors.Is(ctx.Err(), context.DeadlineExceeded)
	if !timeout && ctx.Err() != nil {
		err = ctx.Err()
	} else {
		err = p.refusal(program, err, timeout, o.times.Start)
	}
	p.kill()
	return nil, fmt.Errorf("%v: %w", program, err)
}

// shakeHands starts the process, connects to it, and asks it whether it is of the
// kind.
func (p *process) shakeHands(ctx context.Context, k kind) error {
	client, err := p.client.Client()
	if err != nil {
		return err
	}
	p.conn = client.(*goplugin.GRPCClient).Conn
	reply, err := pb.NewPluginClient(p.conn).Describe(ctx, &pb.DescribeRequest{})
	if err != nil {
		return fmt.Errorf("asked for its kind: %s", oneLine(status.Convert(err).Message()))
	}
	if !slices.Contains(reply.GetKinds(), string(k)) {
		return wrongKind{want: k, is: reply.GetKinds()}
	}
	if err := p.check(ctx); err != nil {
		return fmt.Errorf("asked whether it is well: %s", oneLine(status.Convert(err).Message()))
	}
	return nil
}

// check asks the plugin whether it is well.
func (p *process) check(ctx context.Context) error {
	reply, err := grpc_health_v1.NewHealthClient(p.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	if err == nil && reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = status.Error(codes.Internal, "it says that it is "+reply.GetStatus().String())
	}
	return err
}

// watch returns when the plugin has died, hangs, or ctx ends, and says which.
func (p *process) watch(ctx context.Context, t Times) string {
	ticks := time.NewTicker(t.Check)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return "the agent ends"
		case <-p.child.exited:
			return p.child.exitReason()
		case why := <-p.hung:
			return why
		case <-ticks.C:
		case <-p.doubt:
		}
		limited, cancel := context.WithTimeout(ctx, t.Call)
		err := p.check(limited)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil || p.child.hasExited(dying):
		case status.Code(err) == codes.DeadlineExceeded:
			return fmt.Sprintf("it hangs: no sign of life within %v", t.Call)
		default:
			return "it does not answer: " + oneLine(status.Convert(err).Message())
		}
	}
}

// hangs reports that the plugin hangs, and why.
func (p *process) hangs(why string) {
	select {
	case p.hung <- why:
	default:
	}
}

// noteConn is a [grpc.StreamClientInterceptor]. go-plugin opens a stream over
// each connection that it makes.
func (p *process) noteConn(
	ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	p.mu.Lock()
	if !slices.Contains(p.conns, c) {
		p.conns = append(p.conns, c)
	}
	p.mu.Unlock()
	return open(ctx, d, c, method, opts...)
}

// release closes all connections of a process, and returns when its output is in
// the log.
func (p *process) release() {
	p.client.Kill()
	p.child.settled()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close() // a second time does no harm
	}
}

// end asks the plugin to end, and kills it if it does not.
func (p *process) end() {
	timer := time.AfterFunc(farewell, p.child.kill)
	defer timer.Stop()
	p.child.closeStdin()
	if client, err := p.client.Client(); err == nil {
		_ = client.Close() // it also asks over gRPC
	}
	<-p.child.exited
	p.release()
}

// kill ends the plugin at once.
func (p *process) kill() {
	p.child.kill()
	p.release()
}

// quiet logs go-plugin's own messages at debug level.
func quiet(log *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Level: hclog.Debug, DisableTime: true, Output: debugLogger{log},
	})
}

type debugLogger struct{ log *slog.Logger }

func (d debugLogger) Write(b []byte) (int, error) {
	d.log.Debug("go-plugin: " + string(bytes.TrimSpace(b)))
	return len(b), nil
}

// name is the plugin's name in log lines and short errors.
func (p Program) name() string { return "plugin " + filepath.Base(p.Path) }
