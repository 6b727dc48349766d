package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// diagnoses waits until the registry says something that contains want; empty: nothing.
func diagnoses(t *testing.T, n node, want string) {
	t.Helper()
	assert.EventuallyWithT(t, func(c *assert.CollectT) {
		said := strings.Join(n.Diagnose(t.Context()), "\n")
		if want == "" {
			assert.Empty(c, said)
		}
		assert.Contains(c, said, want)
	}, time.Minute, 50*time.Millisecond)
}

// TestAway: without etcd a request ends before an agent has no more patience, and says
// why; when etcd is back, so is the registry.
func TestAway(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	n := start(t, cluster(e.Endpoints...))
	given, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4", "many6"))
	require.NoError(t, err)
	looker, err := etcd.New(cluster(e.Endpoints...))
	require.NoError(t, err)
	texts, err := looker.Examine(labtest.Soon(t))
	require.NoError(t, err)
	assert.Empty(t, texts)
	e.Kill(0)
	texts, err = looker.Examine(labtest.Soon(t))
	require.NoError(t, err)
	assert.ErrorContains(t, errors.New(strings.Join(texts, "\n")), "nothing listens there; start etcd", "who is no client learns it, too")
	for range 2 { // before and after the registry knows that etcd is away
		_, err = n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
		require.ErrorContains(t, err, "nothing listens there; start etcd")
		assert.NotErrorIs(t, err, context.DeadlineExceeded)
		diagnoses(t, n, "nothing listens there; start etcd")
	}
	all, err := n.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.ErrorContains(t, err, "the addresses are those that were known before")
	assert.ElementsMatch(t, prefixes(given), prefixes(all))
	e.Start(0)
	diagnoses(t, n, "")
	again, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4", "many6"))
	require.NoError(t, err)
	assert.Equal(t, prefixes(given), prefixes(again))
}

// TestNoMajority: one of three members goes unnoticed by requests, two do not.
func TestNoMajority(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Members: 3})
	n := start(t, cluster(e.Endpoints...))
	_, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
	require.NoError(t, err)
	e.Kill(2)
	require.Eventually(t, func() bool {
		_, err = n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	e.Kill(1)
	diagnoses(t, n, "start the other members")
	began := time.Now()
	_, err = n.Allocate(labtest.Soon(t), asks("x", "node1", "few4"))
	require.Error(t, err)
	t.Logf("after %v: %v", time.Since(began), err)
	e.Start(1)
	require.Eventually(t, func() bool {
		_, err = n.Allocate(labtest.Soon(t), asks("x", "node1", "few4"))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
}

// TestKilledUnderLoad: members that are killed and started again lose nothing, and no
// address has two guests, whatever the guests were told.
func TestKilledUnderLoad(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Members: 3})
	nodes := []node{start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))}
	ctx, stop := context.WithTimeout(t.Context(), 8*time.Second)
	defer stop()
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		has     = map[netip.Prefix]string{}
		told    = map[string]int{}
	)
	for n := range 9 {
		running.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				vm := fmt.Sprintf("vm%d", n)
				given, err := nodes[(n+round)%2].Allocate(ctx, asks(vm, "node1", "few4", "many6"))
				mu.Lock()
				switch {
				case errors.Is(err, fabric.ErrRefused):
					told["refused"]++
				case err != nil:
					told["unknown"]++
				default:
					told["given"]++
					for _, p := range prefixes(given) {
						assert.Contains(t, []string{"", vm}, has[p], "%s has two guests", p)
						has[p] = vm
					}
				}
				gives := round%3 == 2 && err == nil
				for _, p := range prefixes(given) {
					if gives { // others may have it from now on
						delete(has, p)
					}
				}
				mu.Unlock()
				if gives {
					_, _ = nodes[round%2].Release(ctx, fabric.ReleaseRequest{Guest: fabric.Identity("libvirt " + vm), Now: true})
				}
			}
		})
	}
	for kill := 0; ctx.Err() == nil; kill++ {
		select {
		case <-time.After(1500 * time.Millisecond):
			e.Kill(kill % 3)
			e.Start(kill % 3)
			e.Ready(kill % 3)
		case <-ctx.Done():
		}
	}
	running.Wait()
	t.Log(told)
	assert.Greater(t, told["given"], 20)
	requireOneGuestEach(t, raw(t, e.Endpoints...))
}

// requireOneGuestEach holds that no guest has two addresses of a want, by the keys
// themselves: each guest asks for one of each family.
func requireOneGuestEach(t *testing.T, client *clientv3.Client) {
	n := start(t, cluster(client.Endpoints()...))
	all, err := n.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	wants := map[string]netip.Prefix{}
	for _, a := range all {
		if a.State != fabric.Allocated {
			continue
		}
		want := fmt.Sprintf("%s %d", a.Guest, a.N)
		assert.False(t, wants[want].IsValid(), "%s has %s and %s", want, wants[want], a.Prefix)
		wants[want] = a.Prefix
	}
}

// TestFull: an etcd that takes nothing new still lets guests give addresses back.
func TestFull(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Args: []string{"--quota-backend-bytes", "1000000"}})
	n := start(t, cluster(e.Endpoints...))
	_, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4", "many6"))
	require.NoError(t, err)
	client := raw(t, e.Endpoints...)
	for i := 0; err == nil; i++ {
		_, err = client.Put(labtest.Soon(t), fmt.Sprintf("other/%d", i), strings.Repeat("x", 100_000))
	}
	_, err = n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
	require.ErrorContains(t, err, "etcd's database is full; compact and defragment it")
	diagnoses(t, n, "its database is full")
	released, err := n.Release(labtest.Soon(t), fabric.ReleaseRequest{Guest: "libvirt web"})
	require.NoError(t, err)
	assert.Len(t, released, 2)
	all, err := n.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	assert.Empty(t, all)
}

// TestCertificates: what is wrong with a connection is told by name.
func TestCertificates(t *testing.T) {
	authority, other := labtest.NewAuthority(t), labtest.NewAuthority(t)
	cert, key := authority.Sign("etcd", time.Now().Add(time.Hour))
	e := labtest.NewEtcd(t, labtest.EtcdOptions{CA: authority.File, Cert: cert, Key: key})
	plain := strings.Replace(e.Endpoints[0], "https", "http", 1)
	with := func(endpoint string, of, by *labtest.Authority, until time.Time) node {
		c := cluster(endpoint)
		if of != nil {
			c.Registry.Etcd.CA = content(t, of.File)
		}
		if by != nil {
			cert, key := by.Sign("node1", until)
			c.Registry.Etcd.Cert, c.Registry.Etcd.Key = content(t, cert), content(t, key)
		}
		return start(t, c)
	}
	year := time.Now().Add(365 * 24 * time.Hour)
	good := with(e.Endpoints[0], authority, authority, year)
	_, err := good.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
	require.NoError(t, err)
	diagnoses(t, good, "")
	diagnoses(t, with(e.Endpoints[0], authority, authority, time.Now().Add(time.Hour)), "this node's certificate for etcd ends at ")
	for _, tt := range []struct {
		name string
		n    node
		want string
	}{
		{"another authority", with(e.Endpoints[0], other, authority, year), "its certificate is of another authority than that of ca_file"},
		{"no certificate", with(e.Endpoints[0], authority, nil, year), "it does not take this node's certificate"},
		{"a certificate of another authority", with(e.Endpoints[0], authority, other, year), "it does not take this node's certificate"},
		{"a certificate that has expired", with(e.Endpoints[0], authority, authority, time.Now().Add(-time.Hour)), "this node's certificate"},
		{"no TLS", with(plain, nil, nil, year), "it does not answer without TLS; write https"},
		{"a port where nothing listens", with("https://127.0.0.1:1", authority, authority, year), "nothing listens there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
			require.ErrorContains(t, err, tt.want)
			t.Log(err)
			diagnoses(t, tt.n, tt.want)
		})
	}
}

// TestMemberThatStandsStill: a member that takes connections and says nothing is not told
// to want TLS.
func TestMemberThatStandsStill(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	n := start(t, cluster(e.Endpoints...))
	e.Pause(0)
	defer e.Continue(0)
	_, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
	require.ErrorContains(t, err, "it takes connections and does not answer")
	diagnoses(t, n, "it takes connections and does not answer")
}

func content(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}
