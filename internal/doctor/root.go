package doctor

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// root is the directory below which a node's files are.
type root string

func (r root) at(path string) string { return filepath.Join(string(r), path) }

// most is the most that is read of a file, in bytes.
const most = 1 << 20

// read returns the beginning of a file; "" if there is none, or it cannot be read.
func (r root) read(path string) string {
	f, err := os.Open(r.at(path))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, most)) // what was read before an error counts
	return string(b)
}

func (r root) exists(path string) bool {
	_, err := os.Stat(r.at(path))
	return err == nil
}

// denied reports whether a file is there and this user may not read it.
func (r root) denied(path string) bool {
	f, err := os.Open(r.at(path))
	if err == nil {
		f.Close()
	}
	return errors.Is(err, fs.ErrPermission)
}

// glob lists the files of a pattern, as the node names them.
func (r root) glob(pattern string) []string {
	all, _ := filepath.Glob(r.at(pattern)) // only a bad pattern is an error
	for i, path := range all {
		all[i] = "/" + strings.TrimLeft(strings.TrimPrefix(path, strings.TrimRight(string(r), "/")), "/")
	}
	return all
}

// starts reports whether systemd starts a unit at boot, or by its socket.
func (r root) starts(unit string) bool {
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if slices.ContainsFunc(r.glob(dir+"/*.wants/"+unit), r.leads) {
			return !r.masked(unit)
		}
	}
	return false
}

// leads reports whether a file is there, or a link leads to one. What a program that was
// removed leaves behind leads nowhere.
func (r root) leads(path string) bool {
	target, err := os.Readlink(r.at(path))
	switch {
	case err != nil:
		return r.exists(path)
	case filepath.IsAbs(target):
		return r.exists(target)
	}
	return r.exists(filepath.Join(filepath.Dir(path), target))
}

// masked reports whether systemd may not start a unit.
func (r root) masked(unit string) bool {
	target, err := os.Readlink(r.at("/etc/systemd/system/" + unit))
	return err == nil && target == os.DevNull
}

// dropIns lists the files with a suffix in some directories in the order of their names,
// which counts over the directories. A file of an earlier directory takes the place of
// those of that name in later ones; a link to /dev/null, or an empty file, hides them.
func (r root) dropIns(suffix string, dirs ...string) (paths []string) {
	at := map[string]string{}
	for _, dir := range dirs {
		for _, path := range r.glob(dir + "/*" + suffix) {
			name := filepath.Base(path)
			if at[name] == "" {
				at[name] = path
			}
		}
	}
	for _, path := range at {
		if target, err := os.Readlink(r.at(path)); err == nil && target == "/dev/null" {
			continue
		}
		paths = append(paths, path)
	}
	slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	return paths
}

// sysctl reads a setting by its path below /proc/sys; "" if the kernel has none.
func (r root) sysctl(path string) string { return strings.TrimSpace(r.read("/proc/sys/" + path)) }

// machineAddresses lists the addresses of this machine.
func machineAddresses() (all []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p.Addr().Unmap())
		}
	}
	return all
}
