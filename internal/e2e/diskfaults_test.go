package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// smallDisk is a file system of an agent's own, for its state.
type smallDisk struct {
	o      *ordeal
	holder *core.Daemon // in the mount namespace in which it is
	mount  string
	dir    string // the state directory, as the tests see it
}

// onSmallDisk starts the agent of a node on a file system of its own.
func (o *ordeal) onSmallDisk(node string) *smallDisk {
	t := o.t
	t.Helper()
	a := o.agents[node]
	d := &smallDisk{o: o, mount: filepath.Join(a.node.Dir(), "disk")}
	require.NoError(t, os.Mkdir(d.mount, 0o700))
	var err error
	d.holder, err = a.node.StartDaemon("disk", exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs -o size=256k tmpfs "+d.mount+" && touch "+d.mount+"/mounted && exec sleep infinity"))
	require.NoError(t, err)
	seen := filepath.Join(fmt.Sprintf("/proc/%d/root", d.holder.Pid()), d.mount)
	o.eventually("the disk is there", func() error {
		_, err := os.Stat(filepath.Join(seen, "mounted"))
		return err
	})
	a.inside = []string{"nsenter", "--mount", "--target", fmt.Sprint(d.holder.Pid())}
	a.args[slices.Index(a.args, "--state")+1] = filepath.Join(d.mount, "state")
	d.dir = filepath.Join(seen, "state")
	a.start()
	a.established()
	return d
}

// hog is a file that fills the disk.
func (d *smallDisk) hog() string { return filepath.Join(filepath.Dir(d.dir), "hog") }

func (d *smallDisk) fill() {
	f, err := os.Create(d.hog())
	require.NoError(d.o.t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	require.NoError(d.o.t, f.Close())
}

func (d *smallDisk) remount(how string) {
	d.o.t.Helper()
	_, err := d.holder.Host().Run(soon(d.o.t), "nsenter", "--mount", "--target", fmt.Sprint(d.holder.Pid()), "mount", "-o", "remount,"+how, d.mount)
	require.NoError(d.o.t, err)
}

// has waits until the state has guests and their addresses, and nothing is half written:
// the end of that would make room on a full disk.
func (d *smallDisk) has(vms ...fabric.VM) {
	d.o.t.Helper()
	var wanted []string
	for _, vm := range vms {
		wanted = append(wanted, filepath.Join(d.dir, "guests", vm.Name+".json"))
		for _, p := range vm.Prefixes() {
			wanted = append(wanted, filepath.Join(d.dir, "addresses", strings.NewReplacer(":", "-", "/", "_").Replace(p.String())+".json"))
		}
	}
	d.o.eventually("the state is written", func() error {
		there := d.files()
		half := func(file string) bool {
			info, err := os.Stat(file)
			unnamed := strings.HasPrefix(filepath.Base(file), ".tmp-") // an empty one is for the next change
			return err != nil || strings.HasSuffix(file, ".new") || unnamed && info.Size() > 0
		}
		if i := slices.IndexFunc(there, half); i >= 0 {
			return fmt.Errorf("%s is half written", there[i])
		}
		for _, file := range wanted {
			if !slices.Contains(there, file) {
				return fmt.Errorf("no %s", file)
			}
		}
		return nil
	})
}

// files lists all of the state.
func (d *smallDisk) files() (all []string) {
	d.o.t.Helper()
	require.NoError(d.o.t, filepath.Walk(d.dir, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // the agent has replaced it since
		}
		if err == nil && info.Mode().IsRegular() {
			all = append(all, path)
		}
		return err
	}))
	require.NotEmpty(d.o.t, all)
	return all
}

// spoil makes every file something else: garbage, a part of itself, and nothing, by turns.
func (d *smallDisk) spoil() {
	d.o.t.Helper()
	for n, file := range d.files() {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // the agent has replaced it since
		}
		require.NoError(d.o.t, err)
		switch n % 3 {
		case 0:
			b = []byte(strings.Repeat("\x00\xff{]", 100))
		case 1:
			b = b[:len(b)/2]
		case 2:
			b = nil
		}
		require.NoError(d.o.t, os.WriteFile(file, b, 0o600))
	}
}

// TestFaultsOfTheDisk: the agent's state cannot be written, or read, or is gone, while it
// runs and when it starts. Guests come and go all the same, and none is lost.
func TestFaultsOfTheDisk(t *testing.T) {
	t.Parallel()
	o := underFaults(t, options{noAgent: true})
	d := o.onSmallDisk("node1")
	o.adds("node1", veth("web", "203.0.113.10", "2001:db8:100::10"))
	for _, f := range []diskFault{
		{"disk full", d.fill, func() { require.NoError(t, os.Remove(d.hog())) }, "no space left on device; free some space on that file system", true},
		{"disk read-only", func() { d.remount("ro") }, func() { d.remount("rw") }, "read-only file system; mount that file system writable", true},
		{"state damaged", d.spoil, func() { o.clears(d) }, "", false},
		{"state lost", func() { require.NoError(t, os.RemoveAll(d.dir)) }, func() { o.clears(d) }, "somebody removed it; restart the agent", false},
	} {
		o.suffers(f.name, func() time.Time {
			d.endures(f)
			f.undo()
			return time.Now()
		})
		d.isWhole(f.name)
	}
}

// diskFault is a fault of the file system, or of the state on it.
type diskFault struct {
	name       string
	make, undo func()
	refuses    string // why guests are not started; empty: they are
	lasts      bool   // a restart of the agent does not end it
}

// endures has guests come and go during a fault of the disk, before and after a restart of
// the agent.
func (d *smallDisk) endures(f diskFault) {
	o, a := d.o, d.o.agents["node1"]
	o.t.Helper()
	word := strings.Fields(f.name)[1]
	starts := func(name, refused string) {
		o.t.Helper()
		if refused == "" {
			o.comesAndGoes("node1", name)
			return
		}
		_, err := a.try(hooks.Request{Op: hooks.Wire, VM: veth(name, "203.0.113.90", "2001:db8:100::90")})
		require.ErrorContains(o.t, err, refused, f.name)
		o.nobodyHas(netip.MustParsePrefix("203.0.113.90/32"), netip.MustParsePrefix("2001:db8:100::90/128"))
		assert.False(o.t, a.node.HasLink(name+"_net0"), f.name)
	}
	gone := veth("gone-"+word, "203.0.113.20", "2001:db8:100::20")
	o.run("node1", gone)
	o.coreHas(a.node, gone.Prefixes()...)
	stays := veth("stays-"+word, "203.0.113.30", "2001:db8:100::30")
	o.run("node1", stays)
	d.has(gone, stays)
	f.make()
	_, err := a.try(hooks.Request{Op: hooks.Remove, VM: gone})
	o.nobodyHas(gone.Prefixes()...)
	starts("a-"+word, f.refuses)
	o.t.Logf("%s: %q", f.name, a.status().Problems)
	require.NoError(o.t, a.Kill())
	a.start()
	a.established()
	o.t.Logf("%s, restarted: %q", f.name, a.status().Problems)
	if here := []string{"web", stays.Name}; err == nil {
		assert.ElementsMatch(o.t, here, o.guestsOf("node1"), f.name)
		o.nobodyHas(gone.Prefixes()...)
	} else {
		assert.Subset(o.t, o.guestsOf("node1"), here, f.name)
	}
	o.coreHas(a.node, stays.Prefixes()...)
	o.reaches(o.top.Client, "203.0.113.30", "2001:db8:100::30")
	if !f.lasts {
		f.refuses = ""
	}
	starts("b-"+word, f.refuses)
	for _, vm := range []fabric.VM{gone, stays} {
		_, _ = a.try(hooks.Request{Op: hooks.Remove, VM: vm}) // what fails is tried again
		o.nobodyHas(vm.Prefixes()...)
	}
}

// isWhole checks that the state has what runs, and nothing else.
func (d *smallDisk) isWhole(name string) {
	o, a := d.o, d.o.agents["node1"]
	o.t.Helper()
	o.eventually("the state has what runs", func() error {
		entries, err := os.ReadDir(filepath.Join(d.dir, "guests"))
		var guests []string
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				guests = append(guests, e.Name())
			}
		}
		if err != nil || !slices.Equal(guests, []string{"web.json"}) {
			return fmt.Errorf("%v %w", guests, err)
		}
		return nil
	})
	a.restart(a.Kill)
	a.healthy()
	assert.Equal(o.t, []string{"web"}, o.guestsOf("node1"), name)
}

// clears does what the agent says of files that it cannot read: it removes those of guests
// and attaches them again, releases the addresses of others, and restarts the agent.
func (o *ordeal) clears(d *smallDisk) {
	o.t.Helper()
	for _, p := range o.agents["node1"].status().Problems {
		if !strings.Contains(p, "remove it") {
			continue
		}
		for _, file := range d.files() {
			if strings.Contains(p, strings.TrimPrefix(file, fmt.Sprintf("/proc/%d/root", d.holder.Pid()))) {
				require.NoError(o.t, os.Remove(file))
			}
		}
	}
	a := o.agents["node1"]
	for _, file := range d.files() {
		if strings.Contains(strings.Join(a.status().Problems, "\n"), filepath.Join("addresses", filepath.Base(file))) {
			address, _, _ := strings.Cut(strings.ReplaceAll(filepath.Base(file), "-", ":"), "_")
			a.does("address", "release", address)
		}
	}
	for _, vm := range o.guests["node1"] {
		a.ask(hooks.Live, vm)
	}
	a.restart(a.Stop)
}
