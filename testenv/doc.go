// Package testenv is how the fabric is tried out. It is in parts:
//
//   - testenv/lab/core is a laboratory of network namespaces: hosts, links, what runs
//     in them. It is what `vmfabric demo` shows the fabric with;
//   - testenv/lab/routers puts BIRD, FRR and speakers that misbehave into it;
//   - testenv/lab/hypervisors puts libvirt with QEMU guests, and LXD with containers
//     into it;
//   - testenv/labtest is the laboratory for tests: labs that close with their test;
//   - testenv/fake has the fabric's interfaces in memory;
//   - testenv/conformance has the laws that fakes and real ones obey;
//   - testenv/prepare fetches what the guests of labs boot.
//
// Routers and hypervisors depend on the core, never the other way round.
package testenv
