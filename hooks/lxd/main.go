// Command lxd is the hook that LXC runs for an instance of LXD or Incus, as
// lxc.hook.start-host and lxc.hook.post-stop (lxc.container.conf(5)). It tells the
// agent of this node, and its exit status tells LXC whether to go on. The fabric
// serves instances without it, too. With the hook, an instance that the fabric
// refuses does not start, and one that has started is announced.
//
// For one instance, or in a profile for many:
//
//	lxc config set web raw.lxc "lxc.hook.start-host = /usr/local/lib/vmfabric/hook-lxd
//	lxc.hook.post-stop = /usr/local/lib/vmfabric/hook-lxd"
//
// For one of Incus, with incus in place of lxc.
//
// For all instances of a Debian package, put the two lines into a file below
// /usr/share/lxc/config/common.conf.d: an instance that is not of the fabric starts
// even without an agent.
//
// LXC_NAME is the name of the instance, after its project and an underscore unless
// that is the default one. LXC_HOOK_TYPE is the hook's name.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	versions "github.com/vmfabric/vmfabric/internal/version"
)

var version = "devel" // set by the linker

// originOf returns the name of the agent's source of an instance, which is that of the
// daemon that runs it. The daemon is named only in the path of the configuration with which
// LXC runs the instance: /run/incus/web/lxc.conf.
func originOf(config string) string {
	where := filepath.Dir(filepath.Dir(config)) // without the name of the instance
	if slices.Contains(strings.Split(where, "/"), "incus") {
		return "incus"
	}
	return "lxd"
}

// hostfs is the folder in which LXD's snap has the files of the host.
const hostfs = "/var/lib/snapd/hostfs"

// occasion is the fabric's part in one of LXC's hooks.
type occasion struct {
	op     hooks.Op
	veto   bool          // if it fails, the instance must not start
	absent time.Duration // how long the hook waits for an agent that restarts
	silent time.Duration // how long it waits for the answer
}

// occasions lists the hooks in which the fabric has a part. When start-host runs,
// the instance has its links, and its init does not run yet.
var occasions = map[string]occasion{
	"start-host": {op: hooks.Starting, veto: true, absent: 4 * time.Second, silent: 20 * time.Second},
	"post-stop":  {op: hooks.Ended, absent: time.Second, silent: 5 * time.Second},
}

func main() {
	// A write to a standard error that nobody reads would end the hook by SIGPIPE.
	signal.Ignore(syscall.SIGPIPE)
	name, kind := os.Getenv("LXC_NAME"), os.Getenv("LXC_HOOK_TYPE")
	if name == "" && versions.Asked(os.Args) {
		fmt.Println(versions.Line("vmfabric-hook-lxd", version))
		return
	}
	if name == "" || kind == "" {
		fmt.Fprintf(os.Stderr, "vmfabric's hook for LXD and Incus, version %s\nset it as lxc.hook.start-host and lxc.hook.post-stop; LXC runs it with LXC_NAME and LXC_HOOK_TYPE set\n", version)
		os.Exit(2)
	}
	o, ours := occasions[kind], hasPort(name)
	if err := o.do(context.Background(), name, ours, os.Getenv("VMFABRIC_SOCKET")); err != nil {
		fmt.Fprintf(os.Stderr, "vmfabric: %v\n", err)
		// An agent that fails must not keep other instances than the fabric's from
		// starting.
		if o.veto && (ours || errors.Is(err, fabric.ErrRefused)) {
			record(name, os.Getenv("LXC_CONFIG_FILE"), err)
			os.Exit(1)
		}
	}
}

// do tells the agent, which knows whether the instance is of the fabric. A panic is
// an error like any other.
func (o occasion) do(ctx context.Context, name string, ours bool, socket string) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("instance %s: fault in the hook: %q; please report it", name, fmt.Sprint(fault))
		}
	}()
	if o.op == "" {
		return nil
	}
	client := hooks.Client{Socket: locate(socket)}
	if ours {
		client.Wait = o.absent
	}
	ctx, cancel := context.WithTimeout(ctx, o.silent)
	defer cancel()
	_, err = client.Call(ctx, hooks.Request{Op: o.op, VM: fabric.VM{Name: name, Origin: originOf(os.Getenv("LXC_CONFIG_FILE"))}})
	if errors.Is(err, hooks.ErrNoAgent) && !ours {
		return nil
	}
	return err
}

// record writes why an instance does not start into its log, which lxc tells the
// user to read (lxc info NAME --show-log, or incus). LXC itself logs a hook's output only at
// debug level. The configuration with which LXC runs the instance names the log.
func record(name, config string, why error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		key, path, _ := strings.Cut(line, "=")
		if strings.TrimSpace(key) != "lxc.log.file" {
			continue
		}
		f, err := os.OpenFile(strings.TrimSpace(path), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer f.Close()
		fmt.Fprintf(f, "lxc %s %s ERROR    vmfabric - %v\n", name, time.Now().UTC().Format("20060102150405.000"), why)
		return
	}
}

// hasPort reports whether the node has a link with the name of an instance's first
// port: without an agent, only that shows that the instance is of the fabric.
// Neither projects nor instances have underscores in their names.
func hasPort(name string) bool {
	_, err := net.InterfaceByName(fabric.PortName(name[strings.LastIndexByte(name, '_')+1:], 0))
	return err == nil
}

// locate returns the path of the agent's socket, which differs in the mount
// namespace of the snap.
func locate(socket string) string {
	if socket != "" {
		return socket
	}
	if _, err := os.Stat(hooks.DefaultSocket); err != nil {
		if _, err := os.Stat(hostfs + hooks.DefaultSocket); err == nil {
			return hostfs + hooks.DefaultSocket
		}
	}
	return hooks.DefaultSocket
}
