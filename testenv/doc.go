// Package testenv is the laboratory in which the fabric is tried out. Its parts:
//
//   - testenv/lab/core is a laboratory of network namespaces: hosts, links and
//     processes in them. `vmfabric demo` shows the fabric with it;
//   - testenv/lab/routers puts BIRD, FRR and speakers that misbehave into it;
//   - testenv/lab/hypervisors puts libvirt with QEMU guests, and LXD or Incus with
//     containers into it;
//   - testenv/lab/machine boots machines with systemd into it;
//   - testenv/lab/clients puts guests into it that configure themselves;
//   - testenv/lab/cache keeps files that are slow to make;
//   - testenv/labtest is the laboratory for tests: labs that close with their test;
//   - testenv/fake has the fabric's interfaces in memory;
//   - testenv/conformance has the laws that fakes and real implementations obey;
//   - testenv/attack has what an attacker sends, as a table;
//   - testenv/faults has what goes wrong around an agent, as a table;
//   - testenv/oldkernel makes the kernel refuse to a process what an older one lacks;
//   - testenv/prepare fetches the kernel of the labs' guests, and makes machines;
//   - testenv/versions runs the tests with the hypervisors and routing daemons of other
//     releases of Debian.
//
// Routers, hypervisors and clients depend on the core, never the other way round.
package testenv
