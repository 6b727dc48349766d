package lxd

// Product is what a [Source] follows: LXD, or Incus, which has LXD's API.
type Product int

// The products. The zero value is LXD.
const (
	LXD Product = iota
	Incus
)

// dialect has the names and places of a product.
type dialect struct {
	name    string   // the name of the source, of the daemon and of its service
	title   string   // the name for people
	client  string   // the command line program
	sockets []string // the daemon's sockets; the first that answers is used
	// ran is the file that a daemon leaves beside its socket when it first runs.
	ran    string
	api    string // the prefix of all paths
	keys   string // the prefix of the fabric's configuration keys: dhcp, ra, and net with the number of a NIC
	moving string // the prefix of an instance's name while it is copied to another place
}

var dialects = map[Product]dialect{
	LXD: {
		name:    "lxd",
		title:   "LXD",
		client:  "lxc",
		sockets: []string{"/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"},
		ran:     "database",
		api:     "/1.0",
		keys:    "user.vmfabric.",
		moving:  "lxd-move-of-",
	},
	Incus: {
		name:    "incus",
		title:   "Incus",
		client:  "incus",
		sockets: []string{"/var/lib/incus/unix.socket"},
		ran:     "database",
		api:     "/1.0",
		keys:    "user.vmfabric.",
		moving:  "move-of-",
	},
}
