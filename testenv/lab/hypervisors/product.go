package hypervisors

import (
	"context"
	"os"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// IncusVariable names the environment variable with the root of a Debian 13 in which Incus
// is installed. With it, the lab starts that Incus wherever a test asks for an LXD.
const IncusVariable = "VMFABRIC_LAB_INCUS"

// product is what the lab starts as an LXD: LXD itself, or Incus.
type product struct {
	name            string
	program, client string // paths
	// root has the files of the machine on which the product is installed; empty: this one.
	root  string
	serve []string // arguments of the program that make it the daemon
	init  []string // the command that takes a preseed
	env   []string // by which its programs find its files
	conf  string   // the variable of the place of its client's files
	trust []string // arguments of the client before the name of a client that is to be trusted
}

// productOf finds what the lab starts as an LXD.
func productOf(ctx context.Context) (p product, err error) {
	if root := os.Getenv(IncusVariable); root != "" {
		return incusIn(root), nil
	}
	p = product{name: "lxd", env: []string{"LXD_DIR=/var/lib/lxd"}, conf: "LXD_CONF", trust: []string{"config", "trust", "add", "--name"}}
	if p.program, err = daemons.Find(ctx, "lxd"); err != nil {
		return p, err
	}
	p.init = []string{p.program, "init", "--preseed"}
	p.client, err = daemons.Find(ctx, "lxc")
	return p, err
}

// incusIn returns the Incus of a root, which sees its own /usr.
func incusIn(root string) product {
	const client = "/usr/bin/incus"
	return product{
		name: "incus", program: "/usr/libexec/incus/incusd", client: client, root: root,
		serve: []string{"--logfile", "/var/log/incus/incusd.log"}, init: []string{client, "admin", "init", "--preseed"},
		conf: "INCUS_CONF", trust: []string{"config", "trust", "add"},
	}
}
