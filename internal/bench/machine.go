package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes the machine of the run.
func machine(ctx context.Context, bin programs) []fact {
	facts := []fact{
		{"date", time.Now().Format(time.DateOnly)},
		{"processor", fmt.Sprintf("%d × %s", runtime.NumCPU(), cmp.Or(fieldOf("/proc/cpuinfo", "model name"), runtime.GOARCH))},
		{"memory", memory()},
		{"kernel", kernel()},
		{"distribution", cmp.Or(strings.Trim(valueOf("/etc/os-release", "PRETTY_NAME="), `"`), "unknown")},
		{"Go", strings.TrimPrefix(runtime.Version(), "go")},
		{"GoBGP", dependency(bin.vmfabric, "github.com/osrg/gobgp/v4")},
		{"BIRD", version(ctx, "bird", "--version")},
		{"FRR", version(ctx, "/usr/lib/frr/bgpd", "--version")},
	}
	for _, p := range []fact{{"vmfabric, the program", bin.vmfabric}, {"hooks/libvirt, the hook", bin.hook}} {
		if st, err := os.Stat(p.value); err == nil {
			facts = append(facts, fact{p.name, mib(st.Size()) + " MiB on disk"})
		}
	}
	return facts
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func memory() string {
	kib, err := strconv.ParseInt(strings.TrimSuffix(fieldOf("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	if err != nil {
		return "unknown"
	}
	return mib(kib<<10) + " MiB"
}

// fieldOf returns the value of the first "name : value" line of a file.
func fieldOf(path, name string) string {
	_, value, _ := strings.Cut(valueOf(path, name), ":")
	return strings.TrimSpace(value)
}

// valueOf returns the rest of the first line that begins with start.
func valueOf(path, start string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, start); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func dependency(program, module string) string {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "unknown"
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return strings.TrimPrefix(d.Version, "v")
		}
	}
	return "unknown"
}

var versionNumber = regexp.MustCompile(`\d+\.\d+[.\d]*`)

func version(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "not installed"
	}
	return cmp.Or(versionNumber.FindString(string(out)), "unknown")
}

const (
	quietEnough = 0.9              // idle share of the processors of a quiet machine
	quietWithin = 10 * time.Second // the kernel may still tidy up after the measurement before
	quietLook   = 300 * time.Millisecond
)

// quiet waits, at most for quietWithin, until the machine is quiet, and returns the
// last idle share of the processors. A smoke run only looks once.
func (b *bench) quiet(ctx context.Context) float64 {
	bound := time.Now()
	if !b.quick {
		bound = bound.Add(quietWithin)
	}
	for {
		idle0, all0 := ticks()
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(quietLook):
		}
		idle1, all1 := ticks()
		idle := float64(idle1-idle0) / max(1, float64(all1-all0))
		if idle >= quietEnough || time.Now().After(bound) {
			return idle
		}
	}
}

// ticks returns the idle and the total time of the processors since boot
// (proc_stat(5)).
func ticks() (idle, all uint64) {
	fields := strings.Fields(valueOf("/proc/stat", "cpu "))
	for i, f := range fields {
		n, _ := strconv.ParseUint(f, 10, 64)
		if i < 8 { // user time includes guest time
			all += n
		}
		if i == 3 || i == 4 {
			idle += n
		}
	}
	return idle, all
}

// footprint is what an agent takes of its machine.
type footprint struct {
	usage
	goroutines, descriptors int
}

// footprint looks at an agent after a short rest. It has to serve metrics at metricsAt.
func (b *bench) footprint(ctx context.Context, a *agent) (f footprint, err error) {
	if f.usage, err = b.memory(ctx, a); err != nil {
		return f, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Pid()))
	if err != nil {
		return f, err
	}
	f.descriptors = len(fds)
	f.goroutines, err = goroutines(ctx, a)
	return f, err
}

// goroutines reads a metric of an agent.
func goroutines(ctx context.Context, a *agent) (n int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAt.String()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.node.Dial}}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, is := strings.CutPrefix(lines.Text(), "go_goroutines "); is {
			return strconv.Atoi(text)
		}
	}
	return 0, errors.New("the agent has no metric go_goroutines")
}

// usage is the memory of a process, in bytes, and the processor time that it has had.
type usage struct {
	rss, pss  int64
	processor time.Duration
}

// usageOf reads what a process uses (proc_pid_smaps(5), smaps_rollup; proc_pid_stat(5)).
func usageOf(pid int) (usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return usage{}, err
	}
	var u usage
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "Rss":
			u.rss = kib << 10
		case "Pss":
			u.pss = kib << 10
		}
	}
	u.processor, err = processorOf(pid)
	return u, err
}

// userHz is how many units of the processor times in /proc a second has.
const userHz = 100

func processorOf(pid int) (all time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	for _, ticks := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(ticks, 10, 64)
		if err != nil {
			return 0, err
		}
		all += time.Duration(n) * time.Second / userHz
	}
	return all, nil
}
