package etcd_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// stranger gives the URL of a server that is no etcd.
func stranger(t *testing.T, serve func(net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

// each serves connections one by one.
func each(f func(net.Conn)) func(net.Listener) error {
	return func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go f(c)
		}
	}
}

// TestMistakenEndpoints: beside one that is right they cost nothing but a line of the
// status, whatever answers there; alone each is named at once.
func TestMistakenEndpoints(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	const none = "what answers there is no etcd; correct the endpoint"
	for name, tc := range map[string]struct {
		serve func(net.Listener) error
		says  string
	}{
		"another gRPC server": {grpc.NewServer().Serve, none},
		"a banner":            {each(func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH\r\n"); io.Copy(io.Discard, c); c.Close() }), none},
		"silence":             {each(func(c net.Conn) { io.Copy(io.Discard, c); c.Close() }), "it takes connections and does not answer"},
		"it closes":           {each(func(c net.Conn) { c.Close() }), "it does not answer without TLS; write https, and name the authority under ca_file, or correct the endpoint"},
		"a web server":        {func(l net.Listener) error { return http.Serve(l, http.NotFoundHandler()) }, "it takes connections and does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := stranger(t, tc.serve)
			n := start(t, cluster(url, e.Endpoints[0]))
			for i := range 20 {
				given, err := n.Allocate(labtest.Soon(t), asks(fmt.Sprint(strings.ReplaceAll(name, " ", "-"), i), "node1", "many6"))
				require.NoError(t, err, "request %d", i)
				assert.Len(t, given, 1)
			}
			diagnoses(t, n, url+": "+tc.says)

			alone := start(t, cluster(url))
			_, err := alone.Allocate(labtest.Soon(t), asks("web", "node1", "many6"))
			require.ErrorContains(t, err, url+": "+tc.says)
		})
	}
}
