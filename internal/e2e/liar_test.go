package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// liar is a program on a node that has the cluster's key and says what it is told to: a
// node that somebody took over. The lines to it and from it are JSON.
type liar struct {
	*core.Daemon
	s   *system
	in  io.WriteCloser
	out *bufio.Reader
}

// lie is what a liar is to do: to ask a node, and to answer that from now on to questions
// of a kind.
type lie struct {
	To      string
	Notice  fabric.Notice
	Answers map[fabric.NoticeKind]fabric.Answer
}

// retort is what a node has answered to a lie.
type retort struct {
	Answer fabric.Answer
	Error  string
}

// runLiar is the liar's program. It takes the cluster file and the node's name.
func runLiar(config, name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cluster, err := clusterfile.Load(config)
	if err != nil {
		return err
	}
	node, err := cluster.Node(name)
	if err != nil {
		return err
	}
	n := nodes.New(nodes.Config{Cluster: cluster, Node: node})
	var answers atomic.Pointer[map[fabric.NoticeKind]fabric.Answer]
	answers.Store(&map[fabric.NoticeKind]fabric.Answer{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return n.Serve(ctx, func(_ context.Context, _ fabric.Node, asked fabric.Notice) fabric.Answer {
			return (*answers.Load())[asked.Kind]
		})
	})
	g.Go(func() error {
		in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
		for {
			var l lie
			if err := in.Decode(&l); err != nil {
				return errors.Join(err, ctx.Err())
			}
			if l.Answers != nil {
				answers.Store(&l.Answers)
			}
			var t retort
			if l.To != "" {
				if t.Answer, err = n.Ask(ctx, l.To, l.Notice); err != nil {
					t.Error = err.Error()
				}
			}
			if err := out.Encode(t); err != nil {
				return err
			}
		}
	})
	return g.Wait()
}

// startLiar takes a node over, on which no agent runs.
func (s *system) startLiar(node string) *liar {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], "liar", s.file, node)
	in, err := cmd.StdinPipe()
	require.NoError(s.t, err)
	out, w, err := os.Pipe()
	require.NoError(s.t, err)
	s.t.Cleanup(func() { in.Close(); out.Close() })
	l := &liar{s: s, in: in, out: bufio.NewReader(out)}
	l.Daemon, err = s.top.Nodes[node].StartDaemonBy("liar", cmd, func(c *exec.Cmd) error {
		c.Stdout = w
		return s.top.Nodes[node].Start(c)
	})
	require.NoError(s.t, err)
	require.NoError(s.t, w.Close())
	l.does(lie{})
	return l
}

// does has the liar do something, and returns what it was told.
func (l *liar) does(what lie) (t retort) {
	l.s.t.Helper()
	require.NoError(l.s.t, json.NewEncoder(l.in).Encode(what))
	line, err := l.out.ReadBytes('\n')
	require.NoError(l.s.t, err, l.Log())
	require.NoError(l.s.t, json.Unmarshal(line, &t), "%s", line)
	return t
}

// says has the liar tell a node something about a guest, which has to be taken.
func (l *liar) says(to string, n fabric.Notice) fabric.Answer {
	l.s.t.Helper()
	t := l.does(lie{To: to, Notice: n})
	require.Empty(l.s.t, t.Error, "%+v", n)
	return t.Answer
}
