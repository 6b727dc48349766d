package labtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Etcd is an etcd of one or several members, on the loopback or on hosts of a lab. All
// of it ends with its test.
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
	env    []string
	dir    string
	health string
	log    string
	host   *core.Host // nil: that of the test
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	ask    *http.Client  // for what it says of itself
}

// EtcdOptions are what a test may want of an [Etcd].
type EtcdOptions struct {
	Members int          // zero: one
	Hosts   []*core.Host // the host of each member; none: the loopback
	// CA, Cert and Key are files. With them clients need a certificate.
	CA, Cert, Key string
	Args          []string           // of every member
	Env           func(int) []string // of a member, in addition to its own
	Dir           func(int) string   // where a member keeps its data; nil: in the test's directory
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
	n, dir := max(1, o.Members, len(o.Hosts)), t.TempDir()
	at := etcdAddresses(t, n, o.Hosts)
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("m%d=http://%s", i, at[n+i]))
	}
	for i := range n {
		client, peer := fmt.Sprintf("%s://%s", scheme, at[i]), fmt.Sprintf("http://%s", at[n+i])
		m := &etcdMember{dir: filepath.Join(dir, fmt.Sprintf("m%d", i)), health: fmt.Sprintf("http://%s", at[2*n+i]), log: filepath.Join(dir, fmt.Sprintf("m%d.log", i)), ask: &http.Client{}}
		if o.Dir != nil {
			m.dir = o.Dir(i)
		}
		if o.Env != nil {
			m.env = o.Env(i)
		}
		if len(o.Hosts) > 0 {
			m.host = o.Hosts[i]
			m.ask.Transport = &http.Transport{DialContext: m.host.Dial}
		}
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
		for i := range e.members {
			e.Kill(i)
			if log := e.Log(i); t.Failed() {
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
	cmd := exec.Command(e.program, slices.Concat(m.as, []string{"--initial-cluster-token", e.Token}, m.args)...)
	cmd.Dir = filepath.Dir(m.log)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "ETCD_UNSUPPORTED_ARCH=" + os.Getenv("ETCD_UNSUPPORTED_ARCH")}, m.env...)
	start := cmd.Start
	if m.host != nil { // its lab ends it
		start = func() error { return m.host.Start(cmd) }
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	err := start()
	if err == nil && m.host != nil {
		err = m.host.Lab().OwnProcess(cmd.Process.Pid)
	}
	if err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	m.cmd, m.ended = cmd, ended
}

// Ready waits until a member serves and has a leader.
func (e *Etcd) Ready(member int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	for {
		said, err := e.says(ctx, member, "/health")
		if err == nil && strings.Contains(said, `"true"`) {
			return
		}
		select {
		case <-ctx.Done():
			e.t.Fatalf("member %d of etcd does not serve: %s %v", member, said, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// says gives what a member says of itself at a path.
func (e *Etcd) says(ctx context.Context, member int, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m := e.members[member]
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, m.health+path, nil)
	if err != nil {
		return "", err
	}
	answer, err := m.ask.Do(ask)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	return string(said), err
}

// Metric adds up the values of a metric of all members that answer, by the beginning of its
// lines.
func (e *Etcd) Metric(line string) (sum float64) {
	e.t.Helper()
	for member := range e.members {
		sum += e.metric(member, line)
	}
	return sum
}

func (e *Etcd) metric(member int, line string) (sum float64) {
	said, err := e.says(e.t.Context(), member, "/metrics")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(said) {
		if strings.HasPrefix(l, line) {
			fields := strings.Fields(l)
			value, _ := strconv.ParseFloat(fields[len(fields)-1], 64)
			sum += value
		}
	}
	return sum
}

// Leader gives the member that says it leads; -1: none does.
func (e *Etcd) Leader() int {
	e.t.Helper()
	for member := range e.members {
		if e.metric(member, "etcd_server_is_leader ") == 1 {
			return member
		}
	}
	return -1
}

// Pid gives the process of a member that runs.
func (e *Etcd) Pid(member int) int { return e.members[member].cmd.Process.Pid }

// Running reports whether a member has been started and has not ended.
func (e *Etcd) Running(member int) bool {
	m := e.members[member]
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Log gives what a member has logged.
func (e *Etcd) Log(member int) string {
	log, err := os.ReadFile(e.members[member].log)
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// Pause stops a member's process until Continue: its connections stay.
func (e *Etcd) Pause(member int) { e.signal(member, syscall.SIGSTOP) }

// Continue undoes Pause.
func (e *Etcd) Continue(member int) { e.signal(member, syscall.SIGCONT) }

func (e *Etcd) signal(member int, s syscall.Signal) {
	if m := e.members[member]; m.cmd != nil {
		_ = m.cmd.Process.Signal(s)
	}
}

// Kill ends a member at once, as a power cut does, if it runs.
func (e *Etcd) Kill(member int) {
	if m := e.members[member]; m.cmd != nil {
		_ = m.cmd.Process.Kill()
		<-m.ended
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

// etcdAddresses gives each of n members an address for clients, one for its peers, and one
// for what it says of itself: first all for clients.
func etcdAddresses(t testing.TB, n int, hosts []*core.Host) (all []string) {
	if len(hosts) == 0 {
		for _, port := range freePorts(t, 3*n) {
			all = append(all, fmt.Sprintf("127.0.0.1:%d", port))
		}
		return all
	}
	for port := 2379; port <= 2381; port++ {
		for _, h := range hosts {
			all = append(all, netip.AddrPortFrom(h.Addr4(), uint16(port)).String())
		}
	}
	return all
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
