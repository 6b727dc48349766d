package testplugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// Command is one line on the control socket; one line answers it.
type Command struct {
	Do     string // of the cases in do
	What   string
	Query  fabric.Query
	NICs   []fabric.NIC
	Events []fabric.Event // in the answer
	Env    [2]string      // likewise
}

// speaker is a fake that has a problem to report.
type speaker struct {
	*fake.Speaker
	trouble atomic.Value
	deaf    atomic.Bool
}

func (s *speaker) Put(ctx context.Context, routes ...fabric.Route) error {
	if s.deaf.Load() {
		select {}
	}
	return s.Speaker.Put(ctx, routes...)
}

func (s *speaker) Diagnose(context.Context) []string {
	if t, _ := s.trouble.Load().(string); t != "" {
		return []string{t}
	}
	return nil
}

func (p *parts) control(path string) {
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	must(err)
	for {
		c, err := l.Accept()
		must(err)
		go func() {
			defer c.Close()
			in := bufio.NewReader(c)
			var cmd Command
			must(json.NewDecoder(in).Decode(&cmd))
			must(json.NewEncoder(c).Encode(p.do(cmd)))
		}()
	}
}

func (p *parts) do(c Command) (answer Command) {
	troubles := []*fake.Trouble{&p.speaker.Trouble, &p.resolver.Trouble, &p.observer.Trouble}
	switch c.Do {
	case "lose":
		p.speaker.Lose(netip.MustParsePrefix(c.What))
	case "session":
		p.speaker.SetSessions(fabric.Session{Peer: c.What, Address: "10.10.0.11", State: "active", Advertised: 3})
	case "trouble":
		p.speaker.trouble.Store(c.What)
	case "know":
		p.resolver.Know(c.Query.VM, c.NICs...)
	case "events":
		answer.Events = p.observer.Events()
	case "hang":
		var release []func()
		for _, t := range troubles {
			release = append(release, t.Hang(c.What))
		}
		p.hangs[c.What] = func() {
			for _, f := range release {
				f()
			}
		}
	case "release":
		p.hangs[c.What]()
	case "deaf": // as a deadlock in the plugin: not even the end of a context ends it
		p.speaker.deaf.Store(true)
	case "fail":
		for _, t := range troubles {
			t.Fail(c.What, errors.New("the daemon is away:\nstart it"))
		}
	case "print":
		fmt.Println(c.What)
		fmt.Fprintln(os.Stderr, c.What)
	case "panic":
		go panic(c.What)
	case "exit":
		os.Exit(4)
	case "env":
		answer.Env = [2]string{os.Getenv("VMFABRIC_CONFIG"), os.Getenv("VMFABRIC_NODE")}
	default:
		panic("unknown command " + c.Do)
	}
	return answer
}
