package kernel

import (
	"maps"
	"slices"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/signal"
)

// Links follows all links of the node by their names, not only the ports. All
// methods are safe for concurrent use.
type Links struct {
	rtnl    *socket
	changed signal.Signal

	mu         sync.Mutex
	names      map[string]bool
	incomplete bool
}

// Links follows the links while the dataplane runs.
func (d *Dataplane) Links() *Links {
	l := &Links{rtnl: d.rtnl, changed: signal.New(), names: map[string]bool{}}
	d.watch.links.add(l)
	return l
}

// Changed signals that links came, went or changed. Signals are coalesced and carry
// nothing.
func (l *Links) Changed() <-chan struct{} { return l.changed }

// Take returns the names of the links that came, went or changed since the last
// call. If incomplete is true, any other link may have changed, too.
func (l *Links) Take() (names []string, incomplete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, incomplete = slices.Sorted(maps.Keys(l.names)), l.incomplete
	clear(l.names)
	l.incomplete = false
	return names, incomplete
}

// Link returns the index of a link, or 0 if there is none of that name, and whether
// it is an end of a veth pair whose other end is on the node, too.
func (l *Links) Link(name string) (index int, paired bool) {
	at, err := l.rtnl.linkByName(name)
	if err != nil {
		return 0, false
	}
	return int(at.index), at.paired()
}

// paired reports whether a link is a veth whose other end is in this namespace: the
// kernel names the other end's namespace only if it is another (IFLA_LINK_NETNSID).
func (l link) paired() bool { return l.kind == "veth" && l.peer != 0 && !l.abroad }

func (l *Links) note(names []string, incomplete bool) {
	l.mu.Lock()
	for _, name := range names {
		l.names[name] = true
	}
	l.incomplete = l.incomplete || incomplete
	l.mu.Unlock()
	l.changed.Send()
}

// linkFollowers are all [Links] of a dataplane.
type linkFollowers struct {
	mu  sync.Mutex
	all []*Links
}

func (f *linkFollowers) add(l *Links) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, l)
}

// publish passes the names of changed links on to all followers.
func (f *linkFollowers) publish(names []string, incomplete bool) {
	if len(names) == 0 && !incomplete {
		return
	}
	f.mu.Lock()
	all := f.all
	f.mu.Unlock()
	for _, l := range all {
		l.note(names, incomplete)
	}
}

func isLink(m netlink.Message) bool {
	return m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == unix.RTM_DELLINK
}

// deletedLink returns the index of the link that a notification says was deleted.
func deletedLink(m netlink.Message) (index int32, deleted bool) {
	if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return 0, false // the end of a bridge port is one of the bridge's family
	}
	return int32(nativeUint32(m.Data[4:])), true
}
