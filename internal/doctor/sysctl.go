package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// settingsName is the file of our settings in a directory of sysctl.d(5).
const settingsName = "90-vmfabric.conf"

// sysctlDirs are the directories of sysctl.d(5), the first of which has precedence.
var sysctlDirs = []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"}

// assignment is a line of a file of sysctl.d(5).
type assignment struct {
	key, value string // the key by its path below /proc/sys, where * may stand for a part
	file       string
	exclude    bool // "-key" alone: no pattern applies to the key
}

// name is the key as sysctl(8) writes it.
func (a assignment) name() string { return sysctlName(a.key) }

func sysctlName(path string) string { return strings.ReplaceAll(path, "/", ".") }

// parseSysctls reads a file of sysctl.d(5).
func parseSysctls(file, text string) (all []assignment) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, set := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		bare := strings.TrimPrefix(key, "-") // with a value: errors are ignored
		if !set && bare == key {
			continue
		}
		all = append(all, assignment{sysctlPath(bare), strings.TrimSpace(value), file, !set})
	}
	return all
}

// sysctlPath gives the path of a key below /proc/sys. If its first separator is a dot,
// a slash stands for a dot in a name.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '/' {
		return key
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(key)
}

// decisive returns the assignment that is in force after all files: the last one that
// names the key, or else the last pattern that matches it.
func decisive(all []assignment, key string) (last assignment, found bool) {
	var pattern assignment
	matched, excluded := false, false
	for _, a := range all {
		switch ok, _ := filepath.Match(a.key, key); {
		case a.key == key && a.exclude:
			excluded = true
		case a.key == key:
			last, found = a, true
		case ok && strings.ContainsAny(a.key, "*?["):
			pattern, matched = a, true
		}
	}
	if !found && matched && !excluded {
		return pattern, true
	}
	return last, found
}

// kept are the settings that the agent keeps, and our file does not have.
var kept = []assignment{
	{key: "net/ipv4/conf/all/forwarding", value: "1"},
	{key: "net/ipv6/conf/all/forwarding", value: "1"},
	{key: "net/ipv6/conf/all/disable_ipv6", value: "0"},
	{key: "net/ipv6/conf/default/disable_ipv6", value: "0"},
	{key: "net/ipv4/conf/web_net0/forwarding", value: "1"}, // of a port, by a pattern
	{key: "net/ipv6/conf/web_net0/disable_ipv6", value: "0"},
	{key: "net/ipv6/conf/web_net0/forwarding", value: "1"},
}

// serves reports whether a value does what the wanted one does.
func serves(key, have, want string) bool {
	if !strings.Contains(key, "gc_thresh") {
		return have == want
	}
	n, err := strconv.Atoi(have)
	least, _ := strconv.Atoi(want) // of our own file
	return err == nil && n >= least
}

// undone lists what the files say against our settings, and against those of the agent.
func undone(files, ours []assignment, own string) (found []Finding) {
	for _, want := range append(ours, kept...) {
		last, set := decisive(files, want.key)
		if !set || serves(want.key, last.value, want.value) {
			continue
		}
		what := fmt.Sprintf("%s sets %s = %s, and a node needs %s", last.file, last.name(), last.value, want.value)
		if own != "" && want.file != "" && readAfter(last.file) {
			what = fmt.Sprintf("%s sets %s = %s, and is read after %s, which has %s", last.file, last.name(), last.value, own, want.value)
		}
		found = append(found, wrong(what, "take the line out of "+last.file+", or write "+want.value+" there"))
	}
	return found
}

// readAfter reports whether a file is read after that of our settings.
func readAfter(file string) bool {
	return filepath.Dir(file) == "/etc" || filepath.Base(file) > settingsName
}

// sysctlFiles reads all assignments in the order of systemd-sysctl(8). Those of
// /etc/sysctl.conf come last, as sysctl --system has it, if no link of sysctl.d leads
// there.
func (r root) sysctlFiles() (all []assignment, own string) {
	linked := false
	for _, path := range r.dropIns(".conf", sysctlDirs...) {
		if filepath.Base(path) == settingsName {
			own = path
		}
		target, err := filepath.EvalSymlinks(r.at(path))
		linked = linked || err == nil && target == r.at("/etc/sysctl.conf")
		all = append(all, parseSysctls(path, r.read(path))...)
	}
	if !linked {
		all = append(all, parseSysctls("/etc/sysctl.conf", r.read("/etc/sysctl.conf"))...)
	}
	return all, own
}

func lookAtSysctls(_ context.Context, e *examination) (found []Finding) {
	files, own := e.sysctlFiles()
	target := sysctlDirs[0] + "/" + settingsName
	ours := parseSysctls(target, e.Settings)
	if own == "" {
		f := wrong("there is no "+target, "vmfabric doctor --fix writes it, or install that of the package, then sysctl -p "+target)
		if e.exists(target) {
			f.What = target + " is a link to /dev/null, so that it says nothing"
		} else {
			f.fix = func() error { return errors.Join(e.writeSettings(target), e.apply(ours)) }
		}
		found = append(found, f)
	}
	found = append(found, undone(files, ours, own)...)
	if differ := e.differing(ours); own != "" && len(differ) > 0 {
		f := wrong(own+" is not in force: "+strings.Join(differ, ", "), "sysctl -p "+own)
		f.fix = func() error { return e.apply(ours) }
		found = append(found, f)
	}
	return found
}

// differing describes the settings of the kernel that do not serve. Of a kernel, or a
// network namespace, that has not got one there is nothing to set.
func (e *examination) differing(want []assignment) (texts []string) {
	for _, a := range want {
		if have := e.sysctl(a.key); have != "" && !serves(a.key, have, a.value) {
			texts = append(texts, fmt.Sprintf("%s is %s, not %s", a.name(), have, a.value))
		}
	}
	return texts
}

// writeSettings writes our file as a whole, or not at all.
func (e *examination) writeSettings(target string) error {
	dir, err := os.MkdirTemp(filepath.Dir(e.at(target)), ".vmfabric-")
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(e.at(target)), 0o755); err == nil {
			dir, err = os.MkdirTemp(filepath.Dir(e.at(target)), ".vmfabric-")
		}
	}
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, settingsName)
	if err := os.WriteFile(file, []byte(e.Settings), 0o644); err != nil {
		return err
	}
	if err := os.Chmod(file, 0o644); err != nil { // whatever the umask is
		return err
	}
	return os.Rename(file, e.at(target))
}

// apply sets what the kernel has and what does not serve.
func (e *examination) apply(all []assignment) error {
	var errs []error
	for _, a := range all {
		have := e.sysctl(a.key)
		if have == "" || serves(a.key, have, a.value) {
			continue
		}
		errs = append(errs, os.WriteFile(e.at("/proc/sys/"+a.key), []byte(a.value), 0))
	}
	return errors.Join(errs...)
}
