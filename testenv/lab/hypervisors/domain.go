package hypervisors

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// DomainOptions describe a libvirt guest of the lab.
type DomainOptions struct {
	Name    string
	UUID    string // one that depends on the name when empty
	NICs    []DomainNIC
	Gateway fabric.Gateway
	// Metadata is the content of the domain's <metadata> instead of the fabric's
	// description of the NICs. With a blank the domain has no metadata of the
	// fabric's.
	Metadata string
	// Ingress are the rules of a stateful <fabric:firewall> of the guest; empty: it has none.
	Ingress string
	// Arguments are words for the guest's kernel command line.
	Arguments string
	// Transient makes a domain that libvirt forgets when it ends: its start creates
	// it, and Define does not define it.
	Transient bool
}

// DomainNIC is an interface of a libvirt guest.
type DomainNIC struct {
	fabric.NIC
	Managed bool   // libvirt makes the tap; else it must be there
	Target  string // the tap's name; fabric.PortName when empty
}

// DomainXML returns the description of a guest that boots the image, with the
// fabric's metadata. Its serial console is a file in /var/log/libvirt/qemu, of
// which every libvirtd of the lab has its own.
func DomainXML(image Image, o DomainOptions) string {
	o.UUID = cmp.Or(o.UUID, uuidOf("domain "+o.Name))
	var b strings.Builder
	err := domainTemplate.Execute(&b, domainView{
		DomainOptions: o, Image: image, Interfaces: o.interfaces(), CommandLine: o.commandLine(),
		Serial: serialPath(libvirtLogDir, o.Name),
	})
	if err != nil {
		panic(err) // the template and its type are both in this file
	}
	return b.String()
}

// domainView is the data for the template of a domain.
type domainView struct {
	DomainOptions
	Image               Image
	Interfaces          []domainInterface
	CommandLine, Serial string
}

type domainInterface struct {
	MAC, Target, Managed string
	Queues, MTU          int
}

func (o DomainOptions) interfaces() []domainInterface {
	list := make([]domainInterface, len(o.NICs))
	for n, nic := range o.NICs {
		list[n] = domainInterface{
			MAC: o.mac(n), Target: cmp.Or(nic.Target, fabric.PortName(o.Name, n)), Managed: "no", Queues: nic.Queues, MTU: nic.MTU,
		}
		if nic.Managed {
			list[n].Managed = "yes"
		}
	}
	return list
}

func (o DomainOptions) mac(n int) string {
	if m := o.NICs[n].MAC; !m.IsZero() {
		return m.String()
	}
	return core.GuestMAC(o.Name, n).String()
}

// commandLine returns the kernel command line, from which the guest's first process
// reads its NICs.
func (o DomainOptions) commandLine() string {
	words := []string{"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "nokaslr", "tsc=unstable"}
	if o.Gateway.IPv4.IsValid() {
		words = append(words, "gw4="+o.Gateway.IPv4.String())
	}
	if o.Gateway.IPv6.IsValid() {
		words = append(words, "gw6="+o.Gateway.IPv6.String())
	}
	for n, nic := range o.NICs {
		words = append(words, fmt.Sprintf("nic%d=%s%s", n, o.mac(n), joined(nic.Addresses)))
		if len(nic.Routes) > 0 {
			words = append(words, fmt.Sprintf("route%d=%s", n, joined(nic.Routes)[1:]))
		}
	}
	if o.Arguments != "" {
		words = append(words, o.Arguments)
	}
	return strings.Join(words, " ")
}

// joined writes a list with a comma before each part.
func joined[T fmt.Stringer](list []T) string {
	var b strings.Builder
	for _, v := range list {
		b.WriteString("," + v.String())
	}
	return b.String()
}

var domainTemplate = template.Must(template.New("domain").Funcs(template.FuncMap{"xml": template.HTMLEscapeString}).Parse(`<domain type='qemu'>
  <name>{{xml .Name}}</name>
  <uuid>{{.UUID}}</uuid>
  <metadata>
  {{- if .Metadata}}{{.Metadata}}{{else}}
    <fabric:vm xmlns:fabric="urn:vmfabric:domain:1">
    {{- range .NICs}}
      <fabric:nic>
      {{- range .Addresses}}
        <fabric:address>{{.}}</fabric:address>
      {{- end}}
      {{- range .Pools}}
        <fabric:address pool='{{xml .}}'/>
      {{- end}}
      {{- range .Routes}}
        <fabric:route>{{.}}</fabric:route>
      {{- end}}
      </fabric:nic>
    {{- end}}
    {{- if .Ingress}}
      <fabric:firewall stateful='yes'><fabric:ingress>{{xml .Ingress}}</fabric:ingress></fabric:firewall>
    {{- end}}
    </fabric:vm>
  {{- end}}
  </metadata>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{{xml .Image.Kernel}}</kernel>
    <initrd>{{xml .Image.Initrd}}</initrd>
    <cmdline>{{xml .CommandLine}}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    {{- range .Interfaces}}
    <interface type='ethernet'>
      <mac address='{{.MAC}}'/>
      <target dev='{{xml .Target}}' managed='{{.Managed}}'/>
      <model type='virtio'/>
      {{- if gt .Queues 1}}
      <driver queues='{{.Queues}}'/>
      {{- end}}
      {{- if .MTU}}
      <mtu size='{{.MTU}}'/>
      {{- end}}
    </interface>
    {{- end}}
    <serial type='file'><source path='{{xml .Serial}}'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
`))

func serialPath(dir, domain string) string {
	return filepath.Join(dir, "qemu", "serial-"+cache.Fingerprint([]byte(domain))+".log")
}

// uuidOf returns a UUID (RFC 9562, version 8) that depends only on the name.
func uuidOf(name string) string {
	u := sha256.Sum256([]byte(name))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Domain is a guest of a [Libvirt]. Its methods can be called while it migrates.
// Until it has moved, they act on its former node.
type Domain struct {
	options DomainOptions
	file    string // its XML

	mu sync.Mutex
	lv *Libvirt
}

// Define makes a guest known to libvirt, or changes its description. It does
// not run yet.
func (lv *Libvirt) Define(ctx context.Context, o DomainOptions) (*Domain, error) {
	image, err := GuestImage(ctx)
	if err != nil {
		return nil, err
	}
	d := &Domain{lv: lv, options: o, file: filepath.Join(lv.host.Dir(), "domain-"+cache.Fingerprint([]byte(o.Name))+".xml")}
	if err := os.WriteFile(d.file, []byte(DomainXML(image, o)), 0o600); err != nil {
		return nil, err
	}
	if o.Transient {
		return d, nil
	}
	_, err = lv.Virsh(ctx, "define", d.file)
	return d, err
}

// Run defines and starts a guest. It returns when libvirt has started it;
// [Domain.WaitReady] waits for the guest itself.
func (lv *Libvirt) Run(ctx context.Context, o DomainOptions) (*Domain, error) {
	d, err := lv.Define(ctx, o)
	if err != nil {
		return nil, err
	}
	return d, d.Start(ctx)
}

// Name returns the guest's name.
func (d *Domain) Name() string { return d.options.Name }

// Libvirt returns the libvirtd that has the guest; after a migration that is
// another one.
func (d *Domain) Libvirt() *Libvirt {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lv
}

func (d *Domain) setLibvirt(lv *Libvirt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lv = lv
}

// Start starts the guest.
func (d *Domain) Start(ctx context.Context) error {
	if d.options.Transient {
		_, err := d.Libvirt().Virsh(ctx, "create", d.file)
		return err
	}
	return d.virsh(ctx, "start")
}

// Destroy pulls the guest's plug.
func (d *Domain) Destroy(ctx context.Context) error { return d.virsh(ctx, "destroy") }

// Pause stops the guest's processor.
func (d *Domain) Pause(ctx context.Context) error { return d.virsh(ctx, "suspend") }

// Resume resumes a paused guest.
func (d *Domain) Resume(ctx context.Context) error { return d.virsh(ctx, "resume") }

// Save writes the guest's state into a file, which ends it here.
func (d *Domain) Save(ctx context.Context, file string) error { return d.virsh(ctx, "save", file) }

// Restore resumes a saved guest from the file, on any node. On a node that does not
// define it, it is transient from then on.
func (d *Domain) Restore(ctx context.Context, on *Libvirt, file string) error {
	if _, err := on.Virsh(ctx, "restore", file); err != nil {
		return err
	}
	d.setLibvirt(on)
	return nil
}

// virsh runs a virsh command on the guest: the word, its name, and more.
func (d *Domain) virsh(ctx context.Context, command string, more ...string) error {
	_, err := d.Libvirt().Virsh(ctx, append([]string{command, d.Name()}, more...)...)
	return err
}

// Shutdown presses the guest's power button and waits until it is off.
func (d *Domain) Shutdown(ctx context.Context) error {
	if err := d.virsh(ctx, "shutdown"); err != nil {
		return err
	}
	return core.Until(ctx, func() error {
		state, err := d.State(ctx)
		if err != nil && strings.Contains(err.Error(), "failed to get domain") {
			return nil // libvirt has forgotten a transient domain
		}
		if err == nil && state != "shut off" {
			err = fmt.Errorf("domain %s is %s", d.Name(), state)
		}
		return err
	})
}

// State returns libvirt's word for the guest's state: "running", "shut off",
// "paused".
func (d *Domain) State(ctx context.Context) (string, error) {
	out, err := d.Libvirt().Virsh(ctx, "domstate", d.Name())
	return strings.TrimSpace(out), err
}

// Pid returns the number of the guest's QEMU process on its node. Killing it is a
// crash of the guest.
func (d *Domain) Pid() (int, error) { return d.Libvirt().GuestPid(d.Name()) }

// GuestPid returns the number of the QEMU process that this node has for a guest,
// also for one that is still arriving.
func (lv *Libvirt) GuestPid(name string) (int, error) {
	b, err := os.ReadFile(filepath.Join(lv.path("run/qemu"), name+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Console returns the output of the guest's serial console since it was started on
// this node or came to it. The output ends with a dot for each second for which the
// guest ran.
func (d *Domain) Console() string {
	b, err := os.ReadFile(d.Libvirt().console(d.Name()))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (lv *Libvirt) console(name string) string { return serialPath(lv.path("log"), name) }

// readyMark is the word that a guest writes to its console when it answers on its
// addresses.
const readyMark = "GUEST-READY"

// WaitReady waits until a guest that was started has set up its NICs and
// serves its ports.
func (d *Domain) WaitReady(ctx context.Context) error {
	return core.Until(ctx, func() error {
		if console := d.Console(); !strings.Contains(console, readyMark) {
			return fmt.Errorf("domain %s on %s is not ready; its console ends: %s", d.Name(), d.Libvirt().host.Name(), oneline.Words(core.Tail(console, 5)))
		}
		return nil
	})
}

// exitMark begins the last line of a guest's answer to a command.
const exitMark = "exit "

// GuestRun makes the libvirt guest at an address run a line of shell (busybox), and
// returns its output. The host must reach the address. A command that fails is an
// error.
func GuestRun(ctx context.Context, h *core.Host, guest netip.Addr, line string) (string, error) {
	out, err := guestRun(ctx, h, guest, line)
	if err != nil {
		return out, fmt.Errorf("guest %s: %s: %w", guest, line, err)
	}
	return out, nil
}

func guestRun(ctx context.Context, h *core.Host, guest netip.Addr, line string) (string, error) {
	if strings.Contains(line, "\n") {
		return "", errors.New("more than one line; join them with ';'")
	}
	conn, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(guest, 8).String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if errors.Is(err, net.ErrClosed) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return string(answer), err
	}
	text := strings.TrimSuffix(string(answer), "\n")
	at := strings.LastIndex(text, exitMark)
	if at < 0 {
		return text, errors.New("its answer has no end")
	}
	if code := text[at+len(exitMark):]; code != "0" {
		return text[:at], fmt.Errorf("exit status %s: %s", code, oneline.Words(text[:at]))
	}
	return text[:at], nil
}
