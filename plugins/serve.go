package plugins

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/fabric"
)

// Config has what a plugin implements: at least one of these.
type Config struct {
	Speaker  fabric.Speaker // see [fabric.NewSpeaker]
	Resolver fabric.Resolver
	Observer fabric.Observer
}

// kinds lists the kinds of the plugin.
func (c Config) kinds() (ks []kind) {
	if c.Speaker != nil {
		ks = append(ks, speaker)
	}
	if c.Resolver != nil {
		ks = append(ks, resolver)
	}
	if c.Observer != nil {
		ks = append(ks, observer)
	}
	return ks
}

// Place is the cluster file and the node for which a plugin works.
type Place struct {
	Config string // the path of the cluster file, see package fabric/clusterfile
	Node   string // the one of its nodes that this is
}

// The environment variables with a plugin's [Place]. The agent sets them.
const (
	VariableConfig = "VMFABRIC_CONFIG"
	VariableNode   = "VMFABRIC_NODE"
)

// Environment returns the place of this plugin, as the agent set it; empty without
// an agent.
func Environment() Place {
	return Place{Config: os.Getenv(VariableConfig), Node: os.Getenv(VariableNode)}
}

// Serve makes the program a plugin. main calls it once. It returns when the agent
// ends the plugin or has gone, or when the plugin gets SIGTERM. main then cleans up
// and ends, in less than two seconds; after that the agent kills it. An agent that
// is killed takes its plugins with it at once.
//
// If no agent started the program, it says in one line on standard error what it is
// for, and exits with 1.
//
// While it runs, standard output and standard error go to the agent's log.
func Serve(c Config) {
	ks := c.kinds()
	if len(ks) == 0 {
		panic("plugins.Serve: a Config without Speaker, Resolver and Observer")
	}
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		fmt.Fprintln(os.Stderr, purpose(os.Args[0], ks))
		os.Exit(1)
	}
	stdout, stderr := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = stdout, stderr }() // goplugin.Serve puts pipes there, which no longer have a reader
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins:         goplugin.PluginSet{"vmfabric": services{config: c}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(opts...)
			go stopWithAgent(s)
			return s
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: stderr, DisableTime: true}),
	})
}

// stopWithAgent ends the server when the other end of standard input is closed: it
// is a pipe from the agent. A signal kills the process that the agent started,
// which may be a script that waits for this one.
func stopWithAgent(s *grpc.Server) {
	gone := make(chan os.Signal, 2)
	signal.Notify(gone, syscall.SIGTERM)
	if in, err := os.Stdin.Stat(); err == nil && in.Mode()&os.ModeNamedPipe != 0 { // a script's background job has another standard input
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			gone <- syscall.SIGHUP
		}()
	}
	<-gone
	s.Stop()
}

// purpose says what a program is for that somebody started by hand.
func purpose(program string, ks []kind) string {
	path, err := filepath.Abs(program)
	if err != nil || !strings.ContainsRune(program, '/') {
		path = program
	}
	var names, ways []string
	for _, k := range ks {
		names = append(names, string(k))
		ways = append(ways, k.setting(path))
	}
	return fmt.Sprintf("%s is a plugin (%s) that the vmfabric agent starts, not a program to run by hand; write %s into the cluster file and restart the agent",
		filepath.Base(program), strings.Join(names, ", "), strings.Join(ways, ", "))
}
