package metadata_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/metadata"
)

// server serves on a TCP port of the machine. The guests' ports are those of the names
// that ports gives for each connection, in turn.
func server(t testing.TB, port func() string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- metadata.Serve(ctx, metadata.Config{
			Cluster: func() *fabric.Cluster { return &cluster }, Listeners: []net.Listener{l},
			PortOf: func(net.Conn) (fabric.Port, bool) {
				name := port()
				return fabric.Port{VM: name}, name != ""
			},
			Guest: func(name string) (fabric.VM, bool) {
				vm := dual.VM
				vm.Name = name
				return vm, name != "gone"
			},
			UserData: func(_ context.Context, vm fabric.VM) ([]byte, error) {
				if vm.Name == "db" {
					return nil, errors.New("no answer")
				}
				return []byte("#!/bin/sh\n"), nil
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return l.Addr().String()
}

// ask sends text and returns all that comes.
func ask(t testing.TB, addr, text string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = c.Write([]byte(text))
	require.NoError(t, err)
	method, _, _ := strings.Cut(text, " ")
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	require.NoError(t, err)
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r, string(body)
}

func get(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\n" + strings.Join(append(headers, "", ""), "\r\n")
}

func TestServe(t *testing.T) {
	addr := server(t, func() string { return "web" })
	r, body := ask(t, addr, get("/meta-data"))
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, told(t, "/meta-data", dual, cluster), body)
	assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	assert.True(t, r.Close, "one request a connection")

	r, body = ask(t, addr, strings.Replace(get("/meta-data"), "GET", "HEAD", 1))
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Empty(t, body)

	for _, host := range []string{"169.254.169.254", "169.254.169.254:80", "[fe80::a9fe:a9fe]", "[fe80::a9fe:a9fe]:80", "[fe80::a9fe:a9fe%25eth0]", "[FE80::A9FE:A9FE]"} {
		r, _ = ask(t, addr, strings.Replace(get("/meta-data"), "169.254.169.254", host, 1))
		assert.Equal(t, http.StatusOK, r.StatusCode, host)
	}
	r, _ = ask(t, addr, get("/nothing"))
	assert.Equal(t, http.StatusNotFound, r.StatusCode)
	for _, path := range []string{"/user-data", "/openstack/latest/user_data"} {
		_, body = ask(t, addr, get(path))
		assert.Equal(t, "#!/bin/sh\n", body)
	}
}

// TestRefused: what a guest asks for others, or was made to ask.
func TestRefused(t *testing.T) {
	addr := server(t, func() string { return "web" })
	for name, tc := range map[string]struct {
		text string
		code int
	}{
		"forwarded for":  {get("/meta-data", "X-Forwarded-For: 192.0.2.1"), http.StatusForbidden},
		"in lower case":  {get("/meta-data", "x-forwarded-host: a"), http.StatusForbidden},
		"forwarded":      {get("/meta-data", "Forwarded: for=192.0.2.1"), http.StatusForbidden},
		"empty":          {get("/meta-data", "Via:"), http.StatusForbidden},
		"via":            {get("/meta-data", "Via: 1.1 proxy"), http.StatusForbidden},
		"real IP":        {get("/meta-data", "X-Real-IP: 192.0.2.1"), http.StatusForbidden},
		"proxy":          {"GET http://169.254.169.254/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", http.StatusForbidden},
		"tunnel":         {"CONNECT 10.10.0.1:22 HTTP/1.1\r\nHost: 10.10.0.1:22\r\n\r\n", http.StatusMethodNotAllowed},
		"another host":   {strings.Replace(get("/meta-data"), "169.254.169.254", "rebound.example.net", 1), http.StatusForbidden},
		"another port":   {strings.Replace(get("/meta-data"), "169.254.169.254", "169.254.169.254:8080", 1), http.StatusForbidden},
		"no host":        {"GET /meta-data HTTP/1.0\r\n\r\n", http.StatusForbidden},
		"write":          {"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 0\r\n\r\n", http.StatusMethodNotAllowed},
		"large header":   {get("/meta-data", "X: "+strings.Repeat("x", 16<<10)), http.StatusRequestHeaderFieldsTooLarge},
		"no HTTP":        {"hello\r\n\r\n", http.StatusBadRequest},
		"two requests":   {get("/nothing") + get("/meta-data"), http.StatusNotFound},
		"a smuggled one": {"GET /nothing HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/meta-data"), http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r, body := ask(t, addr, tc.text)
			assert.Equal(t, tc.code, r.StatusCode)
			assert.NotContains(t, body, uuid)
		})
	}
}

// TestWhose: the connection says whose metadata it is, and nothing else does; of a port
// that the node does not know yet, nothing is said.
func TestWhose(t *testing.T) {
	names := make(chan string, 1)
	addr := server(t, func() string { return <-names })
	for name, code := range map[string]int{"web": http.StatusOK, "db": http.StatusOK, "": http.StatusServiceUnavailable, "gone": http.StatusServiceUnavailable} {
		names <- name
		r, body := ask(t, addr, get("/meta-data", "X-Instance-ID: other", "User-Agent: web"))
		assert.Equal(t, code, r.StatusCode, name)
		if code == http.StatusOK {
			assert.Contains(t, body, fmt.Sprintf("local-hostname: %q", name))
			continue
		}
		assert.NotContains(t, body, uuid)
		assert.Equal(t, "1", r.Header.Get("Retry-After"))
	}
}

// TestUserDataUnread: a guest does not take what cannot be read for nothing.
func TestUserDataUnread(t *testing.T) {
	addr := server(t, func() string { return "db" })
	for path, code := range map[string]int{"/user-data": http.StatusServiceUnavailable, "/openstack/latest/user_data": http.StatusServiceUnavailable, "/meta-data": http.StatusOK} {
		r, body := ask(t, addr, get(path))
		assert.Equal(t, code, r.StatusCode, path)
		assert.NotContains(t, body, "no answer")
	}
}

// FuzzServe: nothing that a guest sends ends the service, or is answered with another
// text than one of the guest's documents.
func FuzzServe(f *testing.F) {
	for _, s := range []string{get("/meta-data"), get("/openstack/latest/network_data.json", "Via: a"), "PUT / HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a/ HTTP/1.0\r\n\r\n", get("//..%2f/meta-data?a=b")} {
		f.Add([]byte(s))
	}
	addr := server(f, func() string { return "web" })
	f.Fuzz(func(t *testing.T, request []byte) {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, _ = c.Write(request)
		require.NoError(t, c.(*net.TCPConn).CloseWrite())
		all, _ := io.ReadAll(c)
		if len(all) == 0 {
			return
		}
		method, _, _ := strings.Cut(string(request), " ")
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), &http.Request{Method: method})
		require.NoError(t, err, "%q", all)
		body, _ := io.ReadAll(r.Body)
		if r.StatusCode != http.StatusOK {
			assert.NotContains(t, string(body), uuid)
			return
		}
		sent, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
		require.NoError(t, err)
		for _, name := range []string{"Via", "Forwarded", "X-Forwarded-For"} {
			assert.NotContains(t, sent.Header, name)
		}
		g := dual
		g.UserData = []byte("#!/bin/sh\n")
		want, _, ok := metadata.Document(sent.URL.Path, g, &cluster)
		assert.True(t, ok)
		if sent.Method == http.MethodGet {
			assert.Equal(t, string(want), string(body))
		}
	})
}
