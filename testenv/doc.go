// Package testenv is the laboratory in which the fabric is tried out. Its parts:
//
//   - testenv/lab/core is a laboratory of network namespaces: hosts, links and
//     processes in them. `vmfabric demo` shows the fabric with it;
//   - testenv/lab/routers puts BIRD, FRR and speakers that misbehave into it;
//   - testenv/lab/hypervisors puts libvirt with QEMU guests, and LXD with containers
//     into it;
//   - testenv/labtest is the laboratory for tests: labs that close with their test;
//   - testenv/fake has the fabric's interfaces in memory;
//   - testenv/conformance has the laws that fakes and real implementations obey;
//   - testenv/prepare fetches the kernel of the labs' guests.
//
// Routers and hypervisors depend on the core, never the other way round.
package testenv
