package kernel

import (
	"errors"
	"fmt"
)

// Reconfigure has a dataplane that runs go by another configuration: what guests may
// reach and are told, whether they are isolated, the prefixes that they have, and the
// machines of the underlay. The rest of cfg stays as it was for New: the name of the
// cluster, the port of the agents, next hops, lifetimes, whether there is metadata, and
// whether packets are counted. What passes goes on passing: no port, no route and nothing
// that the filter knows of flows is touched.
//
// Reconfigure is called by one goroutine at a time, and before Close. After an error the
// dataplane goes by what it could take up, and Run makes good what it could not.
func (d *Dataplane) Reconfigure(cfg Config) error {
	if cfg.Guests.Isolate && len(cfg.Pools) == 0 {
		return errors.New("kernel: guests are to be isolated, and no prefixes of guests are given; name the pools")
	}
	d.host.underlay.machines.set(cfg.Underlay)
	d.forwarding.trials.guests.set(samplesOf(cfg.Samples, d.host.ipv6))
	d.waysOut.reconfigure(cfg)
	d.responder.reconfigure(cfg.Guests)
	errs := []error{d.host.filter.reconfigure(cfg, d.requestsOf(cfg))}
	if d.accounting != nil && cfg.Accounting != nil {
		errs = append(errs, d.accounting.reconfigure(cfg.Accounting.Internal))
	}
	d.watch.suspects.addRules() // those by the links of the underlay
	d.forwarding.changed(true)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	return nil
}
