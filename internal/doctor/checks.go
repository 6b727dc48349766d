package doctor

// checks lists what the doctor looks at, in the order of its report.
func checks() []check {
	return []check{
		{"cluster", "no agent starts without a cluster file that is right, and what it reads its orders from must be nobody else's to write", "", lookAtCluster},
		{"address", "sessions and the agents' messages come from these addresses, and routes lead there", "this machine has the node's addresses", lookAtAddresses},
		{"files", "who can write these files, or read the secrets, can do as root or as a node", "directories, socket, hook and plugins are root's alone", lookAtFiles},
		{"kernel", "guests get no port, or can send as others", "ports, filters and trials work in a namespace of their own", lookAtKernel},
		{"sysctl", "a boot, or sysctl --system, takes from the node what guests need", "our settings are in force, and no file undoes them", lookAtSysctls},
		{"forwarding", "guests are cut off", "", lookAtForwarding},
		{"rp_filter", "packets that come in by another link than the answer leaves by are dropped", "", lookAtReversePath},
		{"neighbours", "a full table cuts off guests, and the node itself", "the tables of neighbours have room", lookAtNeighbours},
		{"mtu", "guests' large packets get lost, and their connections hang", "", lookAtMTU},
		{"table", "guests can send with others' addresses, and reach the node and the underlay", "", lookAtTable},
		{"networkmanager", "it puts DHCP or other addresses on the ports, or takes them down", "", lookAtNetworkManager},
		{"networkd", "it takes away routes and rules that it did not make, or configures the ports", "", lookAtNetworkd},
		{"netplan", "it configures the ports, as if they were the node's own interfaces", "", lookAtNetplan},
		{"firewalld", "it rejects what is forwarded to and from guests after its next reload, or the next boot", "", lookAtFirewalld},
		{"ufw", "it drops what is forwarded to and from guests after its next reload, or the next boot", "", lookAtUFW},
		{"docker", "Docker drops what is forwarded when it is what turned forwarding on", "", lookAtDocker},
		{"libvirt", "guests of libvirt do not start, or without their network", "", lookAtLibvirt},
		{"virtqemud", "guests of the one daemon are not seen by the other, nor by the agent", "", lookAtVirtqemud},
		{"denials", "the kernel refused the fabric something that it needs", "", lookAtDenials},
		{"reflectors", "guests that start or move are not announced", "", lookAtReflectors},
		{"nodes", "guests that move lose packets, and two nodes may have the same guest", "", lookAtNodes},
		{"port", "other nodes cannot tell this one where guests went", "", lookAtPort},
		{"clock", "logs and reports of moves cannot be compared, certificates and quarantines end at other times", "", lookAtClock},
		{"registry", "guests that ask for their first addresses do not start", "", lookAtRegistry},
		{"agent", "by vmfabric status the node is degraded", "", lookAtAgent}, // after those that say the same in particular
	}
}
