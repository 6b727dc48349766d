package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
)

const reloadFile = `name: msk1
asn: 64512
community: "64512:100"
gateway: {ipv4: 169.254.1.1}
pools:
  - {name: public4, prefix: 203.0.113.0/24}
reflectors:
  - {name: rr1, address: 10.10.0.11}
nodes:
  - {name: node1, address: 10.10.0.21}
  - {name: node2, address: 10.10.0.22}
`

// reloaded is a reloader over a file of the test, and what its agent goes by.
type reloaded struct {
	*reloader
	cluster fabric.Cluster
	taken   int
	fault   error
}

func newReloaded(t *testing.T) *reloaded {
	t.Helper()
	r := &reloaded{}
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	r.reloader = &reloader{
		file: file, node: "node1", log: slog.New(slog.DiscardHandler),
		load: func() (fabric.Cluster, error) { return clusterfile.Load(file) },
		now:  func() *fabric.Cluster { return &r.cluster },
		take: func(c fabric.Cluster) error { r.cluster, r.taken = c, r.taken+1; return r.fault },
	}
	r.write(t, reloadFile)
	var err error
	r.cluster, err = r.load()
	require.NoError(t, err)
	r.read, err = contentOf(file)
	require.NoError(t, err)
	require.Empty(t, r.pending())
	return r
}

func (r *reloaded) write(t *testing.T, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(r.file, []byte(text), 0o600))
}

// edited gives the file with a part replaced.
func edited(part, by string) string { return regexp.MustCompile(part).ReplaceAllString(reloadFile, by) }

func TestReloader(t *testing.T) {
	r := newReloaded(t)
	r.write(t, edited("203.0.113.0/24", "192.0.2.0/24"))
	assert.Equal(t, []string{r.file + " has changed since it was read; systemctl reload vmfabric takes it up"}, r.pending())
	require.NoError(t, r.reload())
	assert.Equal(t, netip.MustParsePrefix("192.0.2.0/24"), r.cluster.Pools[0].Prefix)
	assert.Equal(t, 1, r.taken)
	assert.Empty(t, r.pending())

	before := r.cluster
	for _, bad := range []struct{ text, why string }{
		{edited("64512\n", "banana\n"), `cluster.yaml:2: asn: "banana"`},
		{edited("node1", "node9"), `node "node1" is not in cluster msk1`},
		{"", "cluster.yaml"},
	} {
		r.write(t, bad.text)
		err := r.reload()
		require.ErrorContains(t, err, "cluster file not taken up, nothing changes: ")
		require.ErrorContains(t, err, bad.why)
		require.NotEmpty(t, r.pending())
		assert.Contains(t, r.pending()[0], "cluster file not taken up, nothing changes: ")
		assert.Equal(t, before, r.cluster)
	}

	r.write(t, edited("64512\n", "64513\n"))
	require.NoError(t, r.reload())
	assert.Equal(t, uint32(64512), r.cluster.ASN)
	assert.Equal(t, []string{"asn: changed; it is as it was until the agent is restarted"}, r.pending())
	require.NoError(t, r.reload(), "once more")
	assert.Len(t, r.pending(), 1)

	r.write(t, reloadFile+"underlay: [10.10.0.0/16]\n")
	r.fault = errors.New("kernel: no room")
	require.ErrorContains(t, r.reload(), "cluster file taken up in part: kernel: no room; reload once more")
	assert.Equal(t, []string{"cluster file taken up in part: kernel: no room; reload once more, or restart the agent"}, r.pending())
}

// TestTouchedFile: a file that was written again with the same content is the same.
func TestTouchedFile(t *testing.T) {
	r := newReloaded(t)
	next := r.file + ".new"
	require.NoError(t, os.WriteFile(next, []byte(reloadFile), 0o600))
	require.NoError(t, os.Rename(next, r.file))
	require.NoError(t, os.Chtimes(r.file, time.Now(), time.Now().Add(time.Hour)))
	assert.Empty(t, r.pending())
	require.NoError(t, os.Remove(r.file))
	assert.Len(t, r.pending(), 1)
}

// TestHangup: systemd hears when a reload begins and ends, and why it failed.
func TestHangup(t *testing.T) {
	r := newReloaded(t)
	socket := filepath.Join(t.TempDir(), "notify")
	heard, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	require.NoError(t, err)
	defer heard.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	next := func() string {
		require.NoError(t, heard.SetReadDeadline(time.Now().Add(20*time.Second)))
		b := make([]byte, 4096)
		n, err := heard.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	hangup, ignore := hangups()
	defer ignore()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx, hangup) }()
	defer func() { cancel(); <-done }()

	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGHUP))
	assert.Regexp(t, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+$`, next())
	assert.Equal(t, "READY=1\nSTATUS=", next())
	r.write(t, edited("64512\n", "banana\n"))
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGHUP))
	assert.Contains(t, next(), "RELOADING=1")
	assert.Regexp(t, `^READY=1\nSTATUS=cluster file not taken up, nothing changes: .*cluster.yaml:2: asn: .*$`, next())
}
