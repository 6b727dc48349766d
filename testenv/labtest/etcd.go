package labtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// Etcd is an etcd on the loopback, of one or several members. All of it ends with its
// test.
type Etcd struct {
	Endpoints []string
	Token     string // of its members, by which they know each other
	t         testing.TB
	program   string
	members   []*etcdMember
}

type etcdMember struct {
	args   []string
	as     []string // that of its arguments which a restore needs, too
	dir    string
	health string
	log    string
	cmd    *exec.Cmd
}

// EtcdOptions are what a test may want of an [Etcd].
type EtcdOptions struct {
	Members int // zero: one
	// CA, Cert and Key are files. With them clients need a certificate.
	CA, Cert, Key string
	Args          []string // of every member
}

// NewEtcd starts an etcd, and waits until it serves. It skips the test where [Need] would.
func NewEtcd(t testing.TB, o EtcdOptions) *Etcd {
	t.Helper()
	Long(t)
	program, err := daemons.Find(t.Context(), "etcd")
	if err != nil {
		Missing(t, err)
	}
	e := &Etcd{t: t, program: program, Token: "first"}
	scheme := "http"
	if o.Cert != "" {
		scheme = "https"
	}
	n, dir := max(1, o.Members), t.TempDir()
	ports := freePorts(t, 3*n)
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[n+i]))
	}
	for i := range n {
		client, peer := fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[i]), fmt.Sprintf("http://127.0.0.1:%d", ports[n+i])
		m := &etcdMember{dir: filepath.Join(dir, fmt.Sprintf("m%d", i)), health: fmt.Sprintf("http://127.0.0.1:%d", ports[2*n+i]), log: filepath.Join(dir, fmt.Sprintf("m%d.log", i))}
		m.as = []string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", m.dir,
			"--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(all, ","),
		}
		m.args = append([]string{
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
			"--listen-metrics-urls", m.health, "--pre-vote", "--logger", "zap", "--log-outputs", filepath.Base(m.log), // of several, with commas: a test's folder may have one
		}, o.Args...)
		if o.Cert != "" {
			m.args = append(m.args, "--cert-file", o.Cert, "--key-file", o.Key, "--trusted-ca-file", o.CA, "--client-cert-auth")
		}
		e.members = append(e.members, m)
		e.Endpoints = append(e.Endpoints, client)
		e.Start(i)
	}
	t.Cleanup(func() {
		for i, m := range e.members {
			e.Kill(i)
			if log, err := os.ReadFile(m.log); err == nil && t.Failed() {
				t.Logf("end of the log of member %d:\n%s", i, log[max(0, len(log)-4000):])
			}
		}
	})
	for i := range n {
		e.Ready(i)
	}
	return e
}

// Start starts a member that does not run, and does not wait for it.
func (e *Etcd) Start(member int) {
	e.t.Helper()
	m := e.members[member]
	m.cmd = exec.Command(e.program, slices.Concat(m.as, []string{"--initial-cluster-token", e.Token}, m.args)...)
	m.cmd.Dir = filepath.Dir(m.log)
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ETCD_UNSUPPORTED_ARCH=" + os.Getenv("ETCD_UNSUPPORTED_ARCH")}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

// Ready waits until a member serves and has a leader.
func (e *Etcd) Ready(member int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	for {
		ask, err := http.NewRequestWithContext(ctx, http.MethodGet, e.members[member].health+"/health", nil)
		if err != nil {
			e.t.Fatal(err)
		}
		if answer, err := http.DefaultClient.Do(ask); err == nil {
			said, _ := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if strings.Contains(string(said), `"true"`) {
				return
			}
		}
		select {
		case <-ctx.Done():
			e.t.Fatalf("member %d of etcd does not serve", member)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends a member at once, as a power cut does, if it runs.
func (e *Etcd) Kill(member int) {
	if m := e.members[member]; m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// Erase removes all that a member that does not run has kept.
func (e *Etcd) Erase(member int) {
	e.t.Helper()
	if err := os.RemoveAll(e.members[member].dir); err != nil {
		e.t.Fatal(err)
	}
}

// Backup saves what a member has, and returns the file.
func (e *Etcd) Backup(member int) (file string) {
	e.t.Helper()
	file = filepath.Join(e.t.TempDir(), "backup.db")
	e.ctl("etcdctl", "--endpoints", e.Endpoints[member], "snapshot", "save", file)
	return file
}

// Restore starts all members anew with what a backup has. With e.Token as it was it is the
// same etcd by what its members say.
func (e *Etcd) Restore(file string) {
	e.t.Helper()
	tool := "etcdctl"
	if _, err := daemons.Find(e.t.Context(), "etcdutl"); err == nil { // of 3.5 and later
		tool = "etcdutl"
	}
	for i := range e.members {
		e.Kill(i)
		e.Erase(i)
		e.ctl(tool, slices.Concat([]string{"snapshot", "restore", file, "--initial-cluster-token", e.Token}, e.members[i].as)...)
		e.Start(i)
	}
	for i := range e.members {
		e.Ready(i)
	}
}

// ctl runs a program of etcd's.
func (e *Etcd) ctl(name string, args ...string) {
	e.t.Helper()
	program, err := daemons.Find(e.t.Context(), name)
	if err != nil {
		Missing(e.t, err)
	}
	cmd := exec.CommandContext(e.t.Context(), program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ETCDCTL_API=3"}
	if said, err := cmd.CombinedOutput(); err != nil {
		e.t.Fatalf("%s %v: %v\n%s", name, args, err, said)
	}
}

// freePorts gives TCP ports of the loopback on which nothing listens.
func freePorts(t testing.TB, n int) (ports []int) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
