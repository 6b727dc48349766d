package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/initial"
)

type initFlags struct {
	config, node, address string
	pools, dns            []string
	reflectors, core      []string
	cluster               initial.Cluster
}

func initCommand(t *tool) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write the first cluster file and the cluster's key on this node",
		Long: `Init writes a cluster file with comments, and the cluster's key beside it. The
machine says how the node is called and which addresses it has on the underlay: those
of the interface that leads to the first reflector, or of its only interface with a
private address. What no flag says stays a comment to fill in.

It changes no file that is there. The other nodes get copies of both files.`,
		Example: `  vmfabric init
  vmfabric init --pool 203.0.113.0/24 --pool 2001:db8:100::/48 --reflector rr1=10.10.0.11 --reflector rr2=10.10.0.12 --core core1=10.10.0.1`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.parse(); err != nil {
				return usageError{err}
			}
			if err := f.ask(cmd); err != nil {
				return err
			}
			if err := f.faults(); err != nil {
				return usageError{err}
			}
			return f.write(cmd, t)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", defaultConfig, "the cluster file to write")
	fl.StringVar(&f.cluster.Name, "name", "cluster1", "the name of the cluster")
	fl.Uint32Var(&f.cluster.ASN, "asn", 64512, "the AS number of the cluster")
	fl.StringVar(&f.node, "node", "", "the name of this node (default: the host name)")
	fl.StringVar(&f.address, "address", "", "the address of this node on the underlay (default: as the machine has it)")
	fl.StringSliceVar(&f.pools, "pool", nil, "a prefix of which guests have addresses; may be repeated")
	fl.StringSliceVar(&f.reflectors, "reflector", nil, "a route reflector, NAME=ADDRESS; may be repeated")
	fl.StringSliceVar(&f.core, "core", nil, "a core gateway, NAME=ADDRESS; may be repeated")
	fl.StringSliceVar(&f.dns, "dns", nil, "a resolver that guests are told; may be repeated")
	return cmd
}

// parse turns the flags into the cluster that is to be written.
func (f *initFlags) parse() (err error) {
	c := &f.cluster
	if c.Pools, err = parsed("pool", f.pools, worded(netip.ParsePrefix, "a prefix", "203.0.113.0/24 or 2001:db8:100::/48")); err != nil {
		return err
	}
	if c.DNS, err = parsed("dns", f.dns, worded(netip.ParseAddr, "an address", "9.9.9.9 or 2620:fe::fe")); err != nil {
		return err
	}
	if c.Reflectors, err = parsed("reflector", f.reflectors, initial.ParseMachine); err != nil {
		return err
	}
	if c.Core, err = parsed("core", f.core, initial.ParseMachine); err != nil {
		return err
	}
	if f.address != "" {
		c.Address, err = netip.ParseAddr(f.address)
		if err != nil {
			return fmt.Errorf("--address: %q is not an address; write one such as 10.10.0.21", f.address)
		}
	}
	return nil
}

func parsed[T any](flag string, all []string, parse func(string) (T, error)) (values []T, err error) {
	for _, s := range all {
		v, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
		values = append(values, v)
	}
	return values, nil
}

// worded has a parser say what is not right in words of this program.
func worded[T any](parse func(string) (T, error), what, example string) func(string) (T, error) {
	return func(s string) (T, error) {
		v, err := parse(s)
		if err != nil {
			err = fmt.Errorf("%q is not %s; write one such as %s", s, what, example)
		}
		return v, err
	}
}

// ask asks the machine what the flags do not say.
func (f *initFlags) ask(cmd *cobra.Command) error {
	c := &f.cluster
	if c.Node = f.node; c.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w; name the node with --node", err)
		}
		c.Node, _, _ = strings.Cut(host, ".")
	}
	if c.Address.IsValid() {
		if c.Address.Is4() {
			c.Address6 = underlay6(c.Address)
		}
		return nil
	}
	interfaces, err := hostInterfaces()
	if err != nil {
		return err
	}
	var leads netip.Addr
	if len(c.Reflectors) > 0 {
		if leads = sourceTo(cmd, c.Reflectors[0].Address); !leads.IsValid() {
			return fmt.Errorf("no route to reflector %s (%s); set up the underlay first, or give --address", c.Reflectors[0].Name, c.Reflectors[0].Address)
		}
	}
	c.Address, c.Address6, err = initial.Underlay(interfaces, leads)
	return err
}

// faults says which answers cannot be right, by their flags, also while others are missing.
func (f *initFlags) faults() error {
	c := f.cluster.Fabric()
	flags := []struct{ path, flag string }{{"name", "--name " + c.Name}, {"asn", fmt.Sprint("--asn ", c.ASN)}, {"nodes[0].name", "--node " + c.Nodes[0].Name}, {"nodes[0]", "--address " + f.cluster.Address.String()}, {"guests.dns", "--dns"}}
	for i, p := range f.cluster.Pools {
		flags = append(flags, struct{ path, flag string }{fmt.Sprintf("pools[%d]", i), "--pool " + p.String()})
	}
	for key, machines := range map[string][]initial.Machine{"reflector": f.cluster.Reflectors, "core": f.cluster.Core} {
		for i, m := range machines {
			flags = append(flags, struct{ path, flag string }{fmt.Sprintf("%s[%d]", map[string]string{"reflector": "reflectors", "core": "core"}[key], i), "--" + key + " " + m.Name + "=" + m.Address.String()})
		}
	}
	var errs []error
	for _, p := range c.Validate() {
		for _, of := range flags {
			if strings.HasPrefix(p.Path, of.path) {
				errs = append(errs, fmt.Errorf("%s: %s", of.flag, p.Text))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// hostInterfaces lists the interfaces that are up and lead to other machines, with
// their addresses.
func hostInterfaces() (all []initial.Interface, err error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || virtual(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		is := initial.Interface{Name: i.Name}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				is.Addresses = append(is.Addresses, p.Addr())
			}
		}
		all = append(all, is)
	}
	return all, nil
}

// virtual reports whether an interface leads to containers and guests of this
// machine alone, by the names that Docker, libvirt, LXD, Incus and Podman give.
func virtual(name string) bool {
	for _, prefix := range []string{"docker", "br-", "virbr", "lxdbr", "incusbr", "lxcbr", "cni", "veth", "vnet", "tap", "podman"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// sourceTo returns the address from which the machine would send to another. It
// sends nothing.
func sourceTo(cmd *cobra.Command, to netip.Addr) netip.Addr {
	conn, err := (&net.Dialer{}).DialContext(cmd.Context(), "udp", netip.AddrPortFrom(to, 179).String())
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	from, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// write writes the two files, and says what is next.
func (f *initFlags) write(cmd *cobra.Command, t *tool) error {
	text, err := f.cluster.File()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(f.config); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s is there already; edit it, or write another one with --config", f.config)
		}
		return err
	}
	dir := filepath.Dir(f.config)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	key := filepath.Join(dir, "cluster.key")
	kept, err := makeKey(key)
	if err != nil {
		return err
	}
	missing := f.cluster.Missing()
	if len(missing) == 0 { // a file that is whole must be good
		if _, err := clusterfile.Parse(f.config, []byte(text)); err != nil {
			if !kept {
				err = errors.Join(err, os.Remove(key))
			}
			return err
		}
	}
	if err := create(f.config, text, 0o644); err != nil {
		return err
	}
	if missing == nil {
		missing = []string{} // a list, for programs
	}
	if done, err := t.print(cmd, map[string]any{
		"config": f.config, "key": key, "key_kept": kept, "missing": missing,
		"cluster": f.cluster.Name, "node": f.cluster.Node, "address": f.cluster.Address, "address6": f.cluster.Address6,
	}); done {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s: cluster %s, node %s, underlay %s%s\n", f.config, f.cluster.Name, f.cluster.Node, f.cluster.Address, second(f.cluster))
	if kept {
		fmt.Fprintf(out, "%s: was there already, and stays\n", key)
	} else {
		fmt.Fprintf(out, "%s: a new key\n", key)
	}
	if len(missing) > 0 {
		fmt.Fprintf(out, "Fill in %s in %s. ", strings.Join(missing, ", "), f.config)
	}
	check := "vmfabric check"
	if f.config != defaultConfig {
		check += " " + f.config
	}
	fmt.Fprintf(out, "Add a line for each other node, and copy both files to it. Then: %s\n", check)
	return nil
}

func second(c initial.Cluster) string {
	if !c.Address6.IsValid() || c.Address6 == c.Address {
		return ""
	}
	return " and " + c.Address6.String()
}

// makeKey makes the cluster's key. One that is there stays.
func makeKey(path string) (kept bool, err error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	err = create(path, base64.StdEncoding.EncodeToString(secret)+"\n", 0o600)
	if errors.Is(err, fs.ErrExist) {
		return true, nil
	}
	return false, err
}

// create writes a file that is not there yet, whole or not at all.
func create(path, text string, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
