package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vmfabric/vmfabric/fabric/libvirt"
)

// lookAtLibvirt asks the libvirt that runs, or looks at the hook of one that does not.
func lookAtLibvirt(ctx context.Context, e *examination) (found []Finding) {
	if e.NoLibvirt {
		return good("no libvirt is to be followed (--libvirt off)")
	}
	x, err := libvirt.New(libvirt.Config{Socket: e.Libvirt, Hooks: e.Hooks}).Examine(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e.idleLibvirt()
	case errors.Is(err, fs.ErrPermission):
		return unknown("libvirt", err)
	case err != nil:
		return []Finding{sentence(Wrong, err.Error())}
	}
	if x.Hook != "" && e.status == nil { // an agent knows more of that
		found = append(found, sentence(Wrong, x.Hook))
	}
	if !x.Managed {
		found = append(found, note(fmt.Sprintf("libvirt %s knows no managed= of <target>: it makes the taps itself", x.Version), "leave managed out of the domain XML, or upgrade libvirt to 5.7"))
	}
	if len(found) == 0 {
		return good("libvirt %s answers on %s, knows managed='no' and the hook", x.Version, x.Socket)
	}
	return found
}

// idleLibvirt looks at a libvirt that does not run.
func (e *examination) idleLibvirt() []Finding {
	daemon := ""
	for _, name := range []string{"virtqemud", "libvirtd"} {
		if e.exists("/usr/sbin/" + name) {
			daemon = name
		}
	}
	if daemon == "" {
		return good("libvirt is not here")
	}
	text, err := libvirt.HookFault(e.Root, e.Hooks, daemon)
	switch {
	case err != nil:
		return unknown("libvirt's hook", err)
	case text != "":
		return []Finding{sentence(Wrong, text)}
	}
	return good("%s does not run, and the hook is in its place", daemon)
}

// lookAtVirtqemud says whether guests may run under two daemons.
func lookAtVirtqemud(_ context.Context, e *examination) []Finding {
	if e.NoLibvirt {
		return good("no libvirt is to be followed (--libvirt off)")
	}
	both := []string{}
	for _, daemon := range []string{"libvirtd", "virtqemud"} {
		pid := strings.TrimSpace(e.read("/run/" + daemon + ".pid"))
		runs := pid != "" && strings.TrimSpace(e.read("/proc/"+pid+"/comm")) == daemon
		if runs || e.starts(daemon+".service") || e.starts(daemon+".socket") {
			both = append(both, daemon)
		}
	}
	switch len(both) {
	case 0:
		return good("neither libvirtd nor virtqemud runs, or starts at boot")
	case 1:
		return good("%s has the guests alone", both[0])
	}
	return []Finding{wrong("libvirtd and virtqemud both run, or start at boot, and the agent follows the first that answers, virtqemud before libvirtd",
		"keep one: systemctl disable --now libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket, or those of virtqemud")}
}
