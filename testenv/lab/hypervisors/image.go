package hypervisors

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Image is the image of a guest of [Libvirt]: a kernel of the distribution, and an
// initial file system of busybox and a script.
type Image struct{ Kernel, Initrd string }

// kernelPackage depends on the newest kernel for clouds, whose name has its
// version in it.
const kernelPackage = "linux-image-cloud-amd64"

// guestModules are the kernel's drivers that a guest loads, in order.
var guestModules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "button", "evdev",
}

//go:embed guest-init.sh
var guestInit []byte

// GuestImage returns the image of the lab's guests. It takes the image from the
// cache ([cache.Variable]), or makes it: the kernel comes from the machine's package
// mirror by apt, 27 MB once, busybox from the machine.
func GuestImage(ctx context.Context) (Image, error) {
	busybox, err := daemons.Find(ctx, "busybox")
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w (busybox-static)", err)
	}
	tool, err := os.ReadFile(busybox)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	kernel, err := cache.Dir("kernel", func(dir string) error { return fetchKernel(ctx, dir) })
	if err != nil {
		return Image{}, fmt.Errorf("guest image: kernel: %w", err)
	}
	version, err := os.ReadFile(filepath.Join(kernel, "version"))
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	initrd, err := cache.Dir("initrd-"+cache.Fingerprint(version, tool, guestInit), func(dir string) error {
		return makeInitrd(filepath.Join(dir, "initrd"), kernel, tool)
	})
	if err != nil {
		return Image{}, fmt.Errorf("guest image: initrd: %w", err)
	}
	return Image{Kernel: filepath.Join(kernel, "vmlinuz"), Initrd: filepath.Join(initrd, "initrd")}, nil
}

// fetchKernel puts vmlinuz, the modules and the kernel's version into dir.
func fetchKernel(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp("", "vmfabric-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	do := func(program string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = work
		return core.Output(cmd, (*exec.Cmd).Start)
	}
	about, err := do("apt-cache", "--no-all-versions", "show", kernelPackage)
	if err != nil {
		return fmt.Errorf("%w; run apt-get update", err)
	}
	exact := regexp.MustCompile(`(?m)^Depends:.*\b(linux-image-\S+)`).FindStringSubmatch(about)
	if exact == nil {
		return fmt.Errorf("apt-cache says nothing of what %s depends on; run apt-get update", kernelPackage)
	}
	if _, err := do("apt-get", "download", exact[1]); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages", exact[1], len(debs))
	}
	root := filepath.Join(work, "root")
	if _, err := do("dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s has %d kernels", exact[1], len(images))
	}
	return errors.Join(
		copyFile(images[0], filepath.Join(dir, "vmlinuz"), 0o644),
		copyModules(root, dir, do),
		os.WriteFile(filepath.Join(dir, "version"), []byte(filepath.Base(debs[0])), 0o644),
	)
}

// copyModules takes the modules that guests load out of an unpacked package.
// Newer packages have them compressed, which busybox cannot load.
func copyModules(root, dir string, do func(string, ...string) (string, error)) error {
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if name, rest, ok := strings.Cut(filepath.Base(path), ".ko"); ok && (rest == "" || rest == ".xz") {
			found[name] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, m := range guestModules {
		path := found[m]
		switch {
		case path == "":
			return fmt.Errorf("module %s is not in the package", m)
		case strings.HasSuffix(path, ".xz"):
			if _, err := do("xz", "-d", path); err != nil {
				return err
			}
			path = strings.TrimSuffix(path, ".xz")
		}
		if err := copyFile(path, filepath.Join(dir, m+".ko"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeInitrd writes a guest's initial file system. It is not compressed:
// unpacking would take the emulated CPU longer than reading.
func makeInitrd(path, kernel string, busybox []byte) error {
	var b bytes.Buffer
	a := cpioWriter{w: &b}
	for _, dir := range []string{"bin", "proc", "sys", "dev", "run", "tmp", "etc", "etc/acpi", "etc/acpi/PWRF", "modules"} {
		a.add(dir, cpioDir|0o755, nil)
	}
	a.add("init", cpioFile|0o755, guestInit)
	a.add("bin/busybox", cpioFile|0o755, busybox)
	a.add("bin/sh", cpioLink|0o777, []byte("busybox"))
	// The power button, which `virsh shutdown` presses, powers the guest off.
	a.add("etc/acpi/PWRF/00000080", cpioFile|0o755, []byte("#!/bin/sh\n/bin/busybox poweroff -f\n"))
	// The command server: it reads a line of shell, runs it, and writes its output
	// and exit code.
	a.add("bin/obey", cpioFile|0o755, []byte("#!/bin/sh\nread -r line\nsh -c \"$line\" 2>&1\necho \"exit $?\"\n"))
	for _, m := range guestModules {
		ko, err := os.ReadFile(filepath.Join(kernel, m+".ko"))
		if err != nil {
			return err
		}
		a.add("modules/"+m+".ko", cpioFile|0o644, ko)
	}
	a.add("modules/order", cpioFile|0o644, []byte(strings.Join(guestModules, "\n")+"\n"))
	a.end()
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// Types of files in a cpio archive, as in st_mode.
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioLink = 0o120000
)

// cpioWriter writes an archive in the "newc" form, the one that the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioWriter struct {
	w     *bytes.Buffer
	inode int
}

func (a *cpioWriter) add(name string, mode int, data []byte) {
	a.inode++
	// Magic, inode, mode, uid, gid, links, mtime, size, device (2),
	// represented device (2), length of the name with its NUL, checksum.
	fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.w.WriteString(name + "\x00")
	a.pad()
	a.w.Write(data)
	a.pad()
}

// pad fills up to a multiple of four bytes.
func (a *cpioWriter) pad() {
	for a.w.Len()%4 != 0 {
		a.w.WriteByte(0)
	}
}

func (a *cpioWriter) end() { a.add("TRAILER!!!", 0, nil) }

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}
