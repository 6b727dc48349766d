package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/goccy/go-yaml"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/trusted"
)

// lookAtCluster says what is wrong with the cluster file and with the secrets that it
// names, as vmfabric check does.
func lookAtCluster(_ context.Context, e *examination) (found []Finding) {
	if e.loading == nil {
		if e.noNode != nil {
			found = append(found, sentence(Wrong, e.noNode.Error()))
		}
		for _, w := range clusterfile.Warnings(*e.cluster) {
			found = append(found, sentence(Note, w))
		}
		return append(good("%s describes cluster %s", e.File, e.cluster.Name), found...)
	}
	if errors.Is(e.loading, fs.ErrPermission) && os.Geteuid() != 0 {
		return unknown("what the cluster file says", e.loading)
	}
	for line := range strings.Lines(e.loading.Error()) {
		f := sentence(Wrong, strings.TrimSpace(line))
		if path, ok := e.ownFile(f.What); ok {
			f.fix = func() error { return makePrivate(path, path != e.File) }
		}
		found = append(found, f)
	}
	if errors.Is(e.loading, fs.ErrNotExist) && len(found) == 1 {
		found[0].State = Unknown // before the node is set up
		found[0].What += ": what needs it was not looked at"
		found[0].WayOut += ", or have 'vmfabric init' write a first one"
	}
	return found
}

// ownFile finds the file of the fabric whose mode or owner is what a mistake is about.
func (e *examination) ownFile(text string) (string, bool) {
	if !strings.Contains(text, "(mode ") && !strings.Contains(text, "belongs to ") || strings.Contains(text, " on its way ") {
		return "", false
	}
	for _, path := range e.secrets() {
		if strings.Contains(text, path) {
			return path, true
		}
	}
	return e.File, strings.HasPrefix(text, e.File+": it ")
}

// secrets lists the files that the cluster file names and only root may read.
func (e *examination) secrets() (all []string) {
	var doc struct {
		KeyFile    string `yaml:"key_file"`
		Reflectors []struct {
			PasswordFile string `yaml:"password_file"`
		} `yaml:"reflectors"`
		Registry struct {
			Etcd struct {
				KeyFile string `yaml:"key_file"`
			} `yaml:"etcd"`
		} `yaml:"registry"`
	}
	text, err := os.ReadFile(e.File)
	if err != nil || yaml.Unmarshal(text, &doc) != nil {
		return nil // what is wrong with it is another finding
	}
	names := []string{doc.KeyFile, doc.Registry.Etcd.KeyFile}
	for _, r := range doc.Reflectors {
		names = append(names, r.PasswordFile)
	}
	for _, name := range names {
		if name != "" && !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(e.File), name)
		}
		if name != "" {
			all = append(all, name)
		}
	}
	return all
}

// makePrivate gives a file to root, and takes what others may do to it; also what they
// may read, if it is secret.
func makePrivate(path string, secret bool) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mode := info.Mode().Perm() &^ 0o022
	if secret {
		mode &^= 0o077
	}
	return errors.Join(f.Chown(os.Geteuid(), -1), f.Chmod(mode))
}

func lookAtAddresses(_ context.Context, e *examination) (found []Finding) {
	if e.noNode != nil {
		return []Finding{{State: Unknown, What: "the node's addresses are not known: " + e.noNode.Error()}}
	}
	for _, a := range []netip.Addr{e.node.Address, e.node.Address6} {
		if a.IsValid() && !e.source[a.Is6()] {
			found = append(found, wrong(fmt.Sprintf("node %s has the address %s in the cluster file, and no interface of this machine has it", e.node.Name, a),
				"give this machine the address (ip addr), or correct it in the cluster file"))
		}
	}
	return found
}

// lookAtFiles says who else could change what root reads or runs.
func lookAtFiles(_ context.Context, e *examination) (found []Finding) {
	if info, err := os.Stat(e.at(e.StateDir)); err == nil && info.Mode().Perm()&0o077 != 0 {
		f := wrong(fmt.Sprintf("the state directory %s is open to others (mode %04o)", e.StateDir, info.Mode().Perm()), "chmod 700 "+e.StateDir)
		f.fix = func() error { return makePrivate(e.at(e.StateDir), true) }
		found = append(found, f)
	}
	if info, err := os.Stat(e.Socket); err == nil && info.Mode().Perm()&0o077 != 0 {
		f := wrong(fmt.Sprintf("the agent's socket %s is open to others (mode %04o): they can attach guests", e.Socket, info.Mode().Perm()), "chmod 600 "+e.Socket)
		f.fix = func() error { return os.Chmod(e.Socket, 0o600) }
		found = append(found, f)
	}
	plugins := e.plugins()
	for _, path := range plugins {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			f := wrong(fmt.Sprintf("plugin %s (%s): there is no such file", filepath.Base(path), path), "install it, or correct the path")
			f.Why = "what the agent is to ask or tell the plugin fails"
			found = append(found, f)
		}
	}
	paths := append([]string{e.at(e.StateDir), e.at(filepath.Join(e.Hooks, "qemu.d", "vmfabric"))}, plugins...)
	for _, path := range paths {
		bad, ok := errors.AsType[*trusted.Error](trusted.Check(path))
		if !ok {
			continue
		}
		f := wrong(path+": "+bad.Fault(), bad.WayOut)
		if bad.At == bad.Path && strings.HasPrefix(path, e.at(e.StateDir)) {
			f.fix = func() error { return makePrivate(path, true) }
		}
		found = append(found, f)
	}
	return found
}

// plugins lists the programs that the cluster file names.
func (e *examination) plugins() (paths []string) {
	if e.cluster == nil {
		return nil
	}
	for _, p := range e.cluster.Plugins() {
		paths = append(paths, p.Path)
	}
	return paths
}
