package hypervisors

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
	"github.com/vmfabric/vmfabric/internal/requests"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Transport is the way of a migrating guest's memory to the other node.
type Transport string

// The transports.
const (
	PeerToPeer Transport = ""          // the source's libvirtd speaks with the destination's, its QEMU with the destination's
	Direct     Transport = "direct"    // virsh speaks with both libvirtds
	Tunnelled  Transport = "tunnelled" // as peer to peer, but the memory goes from libvirtd to libvirtd
)

// MigrateOptions are the options of a migration. The zero value is peer to peer,
// live, without a limit of bandwidth. A persistent guest is persistent on the other
// node, too.
type MigrateOptions struct {
	Transport Transport
	// Bandwidth limits the copy of the memory, in MiB per second. A guest of
	// the lab has about 80 MiB to copy.
	Bandwidth int
	// PostCopy allows [Migration.PostCopy].
	PostCopy bool
	// Offline moves the description of a guest that does not run.
	Offline bool
	// Arguments go to `virsh migrate` too.
	Arguments []string
}

func (o MigrateOptions) arguments(d *Domain, to *Libvirt) []string {
	args := []string{"migrate", d.Name()}
	switch o.Transport {
	case Direct:
		args = append(args, "qemu+unix:///system?socket="+to.Socket())
		if !o.Offline {
			args = append(args, "--migrateuri", "tcp://"+to.host.Addr4().String())
		}
	case Tunnelled:
		args = append(args, "qemu+tcp://"+to.host.Addr4().String()+"/system", "--p2p", "--tunnelled")
	default:
		args = append(args, "qemu+tcp://"+to.host.Addr4().String()+"/system", "--p2p")
	}
	if o.Offline {
		args = append(args, "--offline")
	} else {
		args = append(args, "--live")
	}
	if !d.options.Transient {
		args = append(args, "--persistent", "--undefinesource")
	}
	if o.PostCopy {
		args = append(args, "--postcopy")
	}
	if o.Bandwidth != 0 {
		args = append(args, "--bandwidth", strconv.Itoa(o.Bandwidth))
	}
	return append(args, o.Arguments...)
}

// Migration is a guest on its way to another node.
type Migration struct {
	domain   *Domain
	from, to *Libvirt
	done     chan struct{}
	err      error // of virsh; read it after done
}

// Migrate moves the running guest to another node, peer to peer, and returns when
// it is there. args go to `virsh migrate`, too.
func (d *Domain) Migrate(ctx context.Context, to *Libvirt, args ...string) error {
	return d.StartMigration(ctx, to, MigrateOptions{Arguments: args}).Wait()
}

// StartMigration begins to move the guest to another node. The Migration tells the
// outcome. The end of ctx ends virsh; that aborts a direct migration and leaves
// others to libvirtd.
func (d *Domain) StartMigration(ctx context.Context, to *Libvirt, o MigrateOptions) *Migration {
	m := &Migration{domain: d, from: d.Libvirt(), to: to, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		if _, m.err = m.from.Virsh(ctx, o.arguments(d, to)...); m.err == nil {
			d.setLibvirt(to)
		}
	}()
	return m
}

// Done is closed when virsh has ended.
func (m *Migration) Done() <-chan struct{} { return m.done }

// Wait waits until virsh has ended, and returns its error. If that is nil, the
// guest is on the other node, and [Domain.Libvirt] that node's. A migration may
// succeed in spite of an error, such as that of a libvirtd that was restarted:
// [Domain.Locate] finds out.
func (m *Migration) Wait() error {
	<-m.done
	return m.err
}

// Copying waits until libvirt has copied some of the guest's memory to the
// destination.
func (m *Migration) Copying(ctx context.Context) error {
	return m.during(ctx, func() error {
		out, err := m.from.Virsh(ctx, "domjobinfo", m.domain.Name())
		if err == nil && (!memoryProcessed.MatchString(out)) {
			err = errors.New("nothing is copied yet")
		}
		return err
	})
}

var memoryProcessed = regexp.MustCompile(`Memory processed: +[1-9]`)

// PostCopy switches the migration to post-copy: the guest goes on at the
// destination at once, and the rest of its memory follows. It returns when libvirt
// has begun with that.
func (m *Migration) PostCopy(ctx context.Context) error {
	return m.during(ctx, func() error { return m.domain.virsh(ctx, "migrate-postcopy") })
}

// Abort ends the migration; the guest goes on where it was. It returns when libvirt
// has accepted that. It fails once the migration is over.
func (m *Migration) Abort(ctx context.Context) error {
	return m.during(ctx, func() error {
		_, err := m.from.Virsh(ctx, "domjobabort", m.domain.Name())
		return err
	})
}

// during tries until f succeeds or the migration is over.
func (m *Migration) during(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.done:
			cancel(m.over())
		case <-ctx.Done():
		}
	}()
	return core.Until(ctx, f)
}

func (m *Migration) over() error {
	if m.err != nil {
		return fmt.Errorf("the migration has ended: %w", m.err)
	}
	return errors.New("the migration has ended")
}

// Downtime returns how long the guest stood still during its last migration, the
// one to its present node, by libvirt's count. It fails after a post-copy, for
// which libvirt has no count.
func (d *Domain) Downtime(ctx context.Context) (time.Duration, error) {
	out, err := d.Libvirt().Virsh(ctx, "domjobinfo", d.Name(), "--completed", "--keep-completed")
	if err != nil {
		return 0, err
	}
	found := totalDowntime.FindStringSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("domain %s: libvirt says nothing of a downtime: %s", d.Name(), oneline.Words(out))
	}
	ms, err := strconv.Atoi(found[1])
	return time.Duration(ms) * time.Millisecond, err
}

var totalDowntime = regexp.MustCompile(`Total downtime: +(\d+) +ms`)

// Locate finds out on which of the nodes the guest now runs or is paused. From then
// on the domain's methods act on that node. It is an error if the guest is on none,
// or on several.
func (d *Domain) Locate(ctx context.Context, among ...*Libvirt) error {
	var found []*Libvirt
	var said []string
	for _, lv := range among {
		state, err := lv.Virsh(ctx, "domstate", d.Name())
		if err != nil {
			state = "unknown"
		}
		state = strings.TrimSpace(state)
		if said = append(said, lv.host.Name()+": "+state); state == "running" || state == "paused" {
			found = append(found, lv)
		}
	}
	if len(found) != 1 {
		return fmt.Errorf("domain %s is on %d nodes (%s)", d.Name(), len(found), strings.Join(said, ", "))
	}
	d.setLibvirt(found[0])
	return nil
}

// pulse is how long a guest that runs may be silent.
const pulse = 4 * time.Second

// Hung reports whether a guest that libvirt calls running does nothing: it neither
// writes to its console nor answers its own node. The node pings its IPv6
// link-local address through the port of its first NIC, past all routes to it.
// About one in fifty emulated guests is like that after a migration, whatever the
// network does; destroy it and start it anew. A guest that shows either sign of
// life is not hung, even if nobody else can reach it. It takes up to four seconds.
func (d *Domain) Hung(ctx context.Context) (bool, error) {
	state, err := d.State(ctx)
	if err != nil {
		return false, err
	}
	if state != "running" {
		return false, fmt.Errorf("domain %s is %s, so it cannot show whether it runs", d.Name(), state)
	}
	ctx, cancel := context.WithTimeout(ctx, pulse)
	defer cancel()
	alive := make(chan bool)
	go func() { alive <- d.ticks(ctx) }()
	go func() { alive <- d.answersItsNode(ctx) }()
	first := <-alive
	if first {
		cancel() // one sign of life is enough
	}
	second := <-alive
	return !first && !second, nil
}

// ticks reports whether the guest writes to its console before ctx ends.
func (d *Domain) ticks(ctx context.Context) bool {
	before := len(d.Console())
	return core.Until(ctx, func() error {
		if len(d.Console()) <= before {
			return errors.New("nothing new")
		}
		return nil
	}) == nil
}

// answersItsNode reports whether the guest answers a ping through the port of its
// first NIC before ctx ends.
func (d *Domain) answersItsNode(ctx context.Context) bool {
	if len(d.options.NICs) == 0 {
		return false
	}
	mac, err := fabric.ParseMAC(d.options.mac(0))
	if err != nil {
		return false
	}
	port := d.options.interfaces()[0].Target
	_, err = d.Libvirt().host.Ping(ctx, requests.LinkLocal(mac).WithZone(port))
	return err == nil
}
