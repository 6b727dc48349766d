// Command bulk is a node without ports. It announces the routes that it is told to,
// by the agent's speaker.
//
//	bulk CLUSTERFILE NODE
//
// It reads lines: "put FILE" announces the prefixes in a file, one a line, "remove
// FILE" withdraws them, "ready" waits for all sessions. It answers each with a
// line, "ok" or the error.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// atOnce is how many routes go into one call of the speaker: as many as in the
// first pass of a restarted agent on a full node.
const atOnce = 1000

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bulk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("give the cluster file and the node's name")
	}
	cluster, err := clusterfile.Load(args[0])
	if err != nil {
		return err
	}
	node, err := cluster.Node(args[1])
	if err != nil {
		return err
	}
	speaker, err := gobgp.New(gobgp.Config{Cluster: cluster, Node: node})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	speaking, end := context.WithCancel(ctx)
	group.Go(func() error { return speaker.Run(speaking) })
	obey(ctx, speaker)
	end()
	return group.Wait()
}

// obey carries out and answers lines until the end of the input.
func obey(ctx context.Context, speaker *gobgp.Speaker) {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer := "ok"
		if err := do(ctx, speaker, in.Text()); err != nil {
			answer = oneline.Of(err.Error())
		}
		fmt.Println(answer)
	}
}

func do(ctx context.Context, s *gobgp.Speaker, line string) error {
	op, file, _ := strings.Cut(line, " ")
	if op == "ready" {
		return ready(ctx, s)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var prefixes []netip.Prefix
	for f := range strings.FieldsSeq(string(text)) {
		p, err := netip.ParsePrefix(f)
		if err != nil {
			return err
		}
		prefixes = append(prefixes, p)
	}
	for part := range slices.Chunk(prefixes, atOnce) {
		switch op {
		case "put":
			routes := make([]fabric.Route, len(part))
			for i, p := range part {
				routes[i].Prefix = p
			}
			err = s.Put(ctx, routes...)
		case "remove":
			err = s.Remove(ctx, part...)
		default:
			err = fmt.Errorf("%q is not put, remove or ready", op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ready waits until all sessions are up.
func ready(ctx context.Context, s *gobgp.Speaker) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		sessions, err := s.Sessions(ctx)
		if err != nil {
			return err
		}
		down := slices.ContainsFunc(sessions, func(s fabric.Session) bool { return s.State != "established" })
		if !down {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sessions are not up: %v", sessions)
		case <-s.Changed():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
