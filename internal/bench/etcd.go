package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// etcd is an etcd with its members on hosts of a lab.
type etcd struct {
	program   string
	hosts     []*core.Host
	endpoints []string
	members   []*core.Daemon
}

// endpointsOf gives where the members of an etcd on hosts answer their clients.
func endpointsOf(addrs ...netip.Addr) (all []string) {
	for _, a := range addrs {
		all = append(all, "http://"+netip.AddrPortFrom(a, 2379).String())
	}
	return all
}

// startEtcd starts a member on each host, and waits until they serve.
func startEtcd(ctx context.Context, hosts ...*core.Host) (*etcd, error) {
	program, err := daemons.Find(ctx, "etcd")
	if err != nil {
		return nil, err
	}
	e := &etcd{program: program, hosts: hosts}
	var addrs []netip.Addr
	for _, h := range hosts {
		addrs = append(addrs, h.Addr4())
	}
	e.endpoints = endpointsOf(addrs...)
	for i := range hosts {
		d, err := e.begin(i)
		if err != nil {
			return nil, err
		}
		e.members = append(e.members, d)
	}
	c, err := e.client(hosts[0])
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return e, core.Until(ctx, func() error {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := c.Put(one, "bench", "")
		return err
	})
}

// begin starts a member, with what it had.
func (e *etcd) begin(i int) (*core.Daemon, error) {
	var all []string
	peer := func(h *core.Host) string { return fmt.Sprintf("http://%s:2380", h.Addr4()) }
	for _, h := range e.hosts {
		all = append(all, h.Name()+"="+peer(h))
	}
	h := e.hosts[i]
	return h.StartDaemon("etcd", exec.Command(e.program, "--name", h.Name(), "--data-dir", filepath.Join(h.Dir(), "etcd"),
		"--listen-client-urls", e.endpoints[i], "--advertise-client-urls", e.endpoints[i],
		"--listen-peer-urls", peer(h), "--initial-advertise-peer-urls", peer(h), "--initial-cluster", strings.Join(all, ","),
		"--pre-vote", "--quota-backend-bytes", "2147483648", "--logger", "zap", "--log-level", "warn"))
}

// client gives a client of etcd that is on a host.
func (e *etcd) client(h *core.Host) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: e.endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return h.Dial(ctx, "tcp", address) })},
	})
}

// memory gives the memory of the largest member.
func (e *etcd) memory() (most int64, err error) {
	for _, d := range e.members {
		u, err := usageOf(d.Pid())
		if err != nil {
			return 0, err
		}
		most = max(most, u.rss)
	}
	return most, nil
}

// peak gives the most memory that the largest member ever had since it began
// (proc_pid_status(5), VmHWM).
func (e *etcd) peak() (most int64, err error) {
	for _, d := range e.members {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid()))
		if err != nil {
			return 0, err
		}
		_, after, _ := strings.Cut(string(b), "\nVmHWM:")
		var kib int64
		if _, err := fmt.Sscan(after, &kib); err != nil {
			return 0, fmt.Errorf("VmHWM of process %d: %w", d.Pid(), err)
		}
		most = max(most, kib<<10)
	}
	return most, nil
}
