package nodes_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestOlderAgent is one that knows no identities of guests: it is told of claims
// as before, and nobody waits for what it cannot say.
func TestOlderAgent(t *testing.T) {
	for _, f := range families[:2] {
		t.Run(f.name, func(t *testing.T) {
			c := cluster(f.four, f.six, "")
			at := c.Nodes[0].Address
			if !at.IsValid() {
				at = c.Nodes[0].Address6
			}
			l, err := net.Listen("tcp", netip.AddrPortFrom(at, fabric.DefaultAgentPort).String())
			require.NoError(t, err)
			lines := make(chan string, 100)
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					serving.Go(func() {
						defer conn.Close()
						io.WriteString(conn, `{"v":1,"cluster":"lab","node":"node1"}`+"\n")
						for r := bufio.NewReader(conn); ; {
							line, err := r.ReadString('\n')
							if err != nil {
								return
							}
							lines <- line
							io.WriteString(conn, `{"body":{"v":1,"answer":{"held":true,"generation":7}}}`+"\n")
						}
					})
				}
			})
			two := end(c, c.Nodes[1])
			n := notice()
			n.Identity, n.Acquired = "libvirt 1", time.Now()
			for range 2 {
				answer, err := two.Ask(t.Context(), "node1", n)
				require.NoError(t, err)
				assert.Equal(t, fabric.Answer{Held: true, Epoch: 7}, answer)
				told := <-lines
				assert.NotContains(t, told, `"identity"`)
				assert.NotContains(t, told, `"acquired"`)
				assert.Contains(t, told, `"kind":"claimed"`)
			}
			n.Kind = fabric.Acquiring
			_, err = two.Ask(t.Context(), "node1", n)
			require.ErrorContains(t, err, "node node1: its agent is older and does not say who holds an address; upgrade it")
			n = fabric.Notice{Kind: fabric.Listing}
			_, err = two.Ask(t.Context(), "node1", n)
			require.ErrorIs(t, err, errors.ErrUnsupported)
			require.EqualError(t, err, "node node1: its agent is older and does not tell its ports; upgrade it")
			_, err = two.Ask(t.Context(), "node1", fabric.Notice{Kind: fabric.Comparing, Registry: &fabric.RegistryIdentity{Name: "etcd"}})
			require.ErrorIs(t, err, errors.ErrUnsupported)
			assert.Empty(t, lines)
			assert.Empty(t, two.Diagnose(t.Context()), "an upgrade goes from node to node")

			require.NoError(t, l.Close())
			serve(t, two, (&held{}).answer)() // closes what is kept
			serving.Wait()
		})
	}
}
