package lxd

// dialect is the names and places that LXD has, and that a relative of it may
// have otherwise.
type dialect struct {
	name    string   // of the source, of the daemon and of its service
	client  string   // the command line program
	sockets []string // where the daemon listens; the first that answers
	// ran is what a daemon leaves beside its socket when it first runs.
	ran    string
	api    string // begins all paths
	keys   string // begins the fabric's configuration keys; a NIC's number follows
	moving string // begins the names that instances have while they are copied to another place
}

var ofLXD = dialect{
	name:    "lxd",
	client:  "lxc",
	sockets: []string{"/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"},
	ran:     "database",
	api:     "/1.0",
	keys:    "user.vmfabric.net",
	moving:  "lxd-move-of-",
}
