package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/requests"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// patient is how long a guest waits for an answer before it asks again (RFC 2131, 4.1).
const patient = 4 * time.Second

// boots has the times of guests that ask for their configuration at once.
type boots struct {
	mu     sync.Mutex
	took   map[requests.Kind]sample // from a request that was answered to its answer
	online sample                   // from the beginning until a guest has all that it asks for
	again  int                      // requests that were sent again
}

// measureBoots has many guests ask for their addresses and a router at the same moment,
// by DHCPv4, DHCPv6 and router solicitation.
func measureBoots(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "boots", 1)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	gs := guests(0, b.size.storm)
	if _, err := a.askAll(ctx, hooks.Live, gs, 64); err != nil {
		return s, err
	}
	var taps []*os.File
	defer func() {
		for _, f := range taps {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, g := range gs {
		f, err := holdTap(a.node, g.port())
		if err != nil {
			return s, err
		}
		taps = append(taps, f)
	}
	if err := a.ready(ctx, len(gs)); err != nil {
		return s, err
	}
	b.quiet(ctx)
	before, err := usageOf(a.Pid())
	if err != nil {
		return s, err
	}
	all := &boots{took: map[requests.Kind]sample{}}
	for range b.size.storms {
		if err := all.round(ctx, gs, taps, l.cluster.Gateway); err != nil {
			return s, err
		}
	}
	after, err := usageOf(a.Pid())
	if err != nil {
		return s, err
	}
	return all.section(b.size, before, after), nil
}

// round has all guests boot once.
func (bs *boots) round(ctx context.Context, gs []guest, taps []*os.File, gateway fabric.Gateway) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	errs := make([]error, len(gs))
	var wg sync.WaitGroup
	began := time.Now()
	for i, g := range gs {
		who := requests.Guest{MAC: fabric.MAC(core.GuestMAC(g.name, 0)), Addresses: g.vm("").NICs[0].Addresses, Gateway: gateway}
		wg.Go(func() { errs[i] = bs.boot(ctx, began, who, taps[i], uint32(i)<<4) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// boot asks for all that a guest needs. Which of its requests an answer is to, their
// numbers say: each kind has its own.
func (bs *boots) boot(ctx context.Context, began time.Time, who requests.Guest, tap *os.File, number uint32) error {
	sent, waits := map[requests.Kind]time.Time{}, map[requests.Kind]bool{}
	ask := func(k requests.Kind) error {
		_, err := tap.Write(who.Frame(k, number+uint32(k)))
		sent[k], waits[k] = time.Now(), true
		return err
	}
	for _, k := range []requests.Kind{requests.Solicitation, requests.Discover, requests.Solicit} {
		if err := ask(k); err != nil {
			return err
		}
	}
	frame := make([]byte, 2048)
	for len(waits) > 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("no answer to %v: %w", slices.Collect(maps.Keys(waits)), ctx.Err())
		}
		if err := tap.SetReadDeadline(time.Now().Add(patient)); err != nil {
			return err
		}
		n, err := tap.Read(frame)
		at := time.Now()
		for k := range waits {
			if at.Sub(sent[k]) > patient {
				bs.count(func() { bs.again++ })
				if err := ask(k); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		k, answered := answeredBy(frame[:n], number)
		if !answered || !waits[k] {
			continue
		}
		delete(waits, k)
		bs.count(func() { bs.took[k] = append(bs.took[k], at.Sub(sent[k])) })
		if k == requests.Discover {
			if err := ask(requests.Select); err != nil {
				return err
			}
		}
	}
	bs.count(func() { bs.online.add(time.Since(began)) })
	return nil
}

// answeredBy returns the kind of request that a frame answers.
func answeredBy(frame []byte, number uint32) (k requests.Kind, answered bool) {
	switch protocol, to := requests.AnswerTo(frame); {
	case protocol == "RA":
		return requests.Solicitation, true
	case protocol != "" && to >= number && to < number+uint32(requests.Kinds):
		return requests.Kind(to - number), true
	}
	return 0, false
}

func (bs *boots) count(f func()) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	f()
}

func (bs *boots) section(size size, before, after usage) section {
	n := count(size.storm)
	s := section{
		title: fmt.Sprintf("%s guests that boot at once", n),
		method: fmt.Sprintf(`
%s guests with a tap each send a router solicitation, a DISCOVER and a SOLICIT at the same moment, and a REQUEST when they are
offered an address; what is not answered they ask again after %v. The node holds each request for 10 ms (docs/guests.md). The
guests run on the same processors. %d rounds.`, n, patient, size.storms),
	}
	t := table{head: []string{"answer to", "p50 ms", "p99 ms", "slowest ms"}}
	for _, k := range []requests.Kind{requests.Discover, requests.Select, requests.Solicit, requests.Solicitation} {
		t.row(k.String(), ms(bs.took[k].p50()), ms(bs.took[k].p99()), ms(bs.took[k].max()))
	}
	t.row("all, from the first guest's first request", ms(bs.online.p50()), ms(bs.online.p99()), ms(bs.online.max()))
	m := table{head: []string{"the agent", "RSS MiB", "PSS MiB"}}
	m.row("before", mib(before.rss), mib(before.pss))
	m.row("after", mib(after.rss), mib(after.pss))
	s.tables = []table{t, m}
	s.notes = []string{fmt.Sprintf("%d requests of %s were sent again.", bs.again, count(size.storm*size.storms*4))}
	return s
}
