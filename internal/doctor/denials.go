package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// denialsFor is how long a denial is reported: its cause may be mended since.
const denialsFor = time.Hour

const auditLog = "/var/log/audit/audit.log"

func lookAtDenials(_ context.Context, e *examination) []Finding {
	text, err := e.kernelLog()
	if err != nil && (e.denied(auditLog) || !e.exists(auditLog)) {
		return unknown("denials of AppArmor and SELinux", err)
	}
	text += e.tail(auditLog)
	found := denials(text, time.Now())
	if len(found) == 0 {
		return good("neither AppArmor nor SELinux denied the fabric anything in the last hour")
	}
	return found
}

// kernelLog reads the kernel's messages of this boot (/dev/kmsg): each read gives one.
func (e *examination) kernelLog() (string, error) {
	fd, err := unix.Open(e.at("/dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: "/dev/kmsg", Err: err}
	}
	defer unix.Close(fd)
	var b strings.Builder
	record := make([]byte, 8192)
	for b.Len() < 16*most {
		n, err := unix.Read(fd, record)
		if err == unix.EPIPE { // messages were overwritten meanwhile
			continue
		}
		if err != nil || n == 0 {
			break // there are no more
		}
		b.Write(record[:n])
	}
	return b.String(), nil
}

// tail reads the end of a file.
func (r root) tail(path string) string {
	f, err := os.Open(r.at(path))
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, _ := io.ReadAll(io.LimitReader(f, most)) // what was read before an error counts
	return string(b)
}

// A record of the audit system has its time in seconds since 1970, and its parts as
// name="value" or name=value.
var (
	auditTime = regexp.MustCompile(`audit\((\d+)\.\d+:\d+\)`)
	auditPart = regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`)
	auditSet  = regexp.MustCompile(`denied\s+\{ ([^}]*) \}`)
)

// denials finds what AppArmor and SELinux denied the fabric, each thing once.
func denials(text string, now time.Time) (found []Finding) {
	for line := range strings.Lines(text) {
		armor, linux := strings.Contains(line, `apparmor="DENIED"`), strings.Contains(line, "avc:") && auditSet.MatchString(line)
		if !armor && !linux || !strings.Contains(line, "vmfabric") {
			continue
		}
		if m := auditTime.FindStringSubmatch(line); m != nil {
			if s, err := strconv.ParseInt(m[1], 10, 64); err == nil && now.Sub(time.Unix(s, 0)) > denialsFor {
				continue
			}
		}
		part := map[string]string{}
		for _, m := range auditPart.FindAllStringSubmatch(line, -1) {
			part[m[1]] = strings.Trim(m[2], `"`)
		}
		f := wrong(fmt.Sprintf("AppArmor denied %s (profile %s) %s of %s", part["comm"], part["profile"], part["operation"], part["name"]),
			fmt.Sprintf("allow it in /etc/apparmor.d/local for that profile, then apparmor_parser -r; or aa-complain %s", part["profile"]))
		if linux {
			object := part["path"]
			if object == "" {
				object = part["name"]
			}
			f = wrong(fmt.Sprintf("SELinux denied %s (%s) { %s } of %s (%s)", part["comm"], part["scontext"], auditSet.FindStringSubmatch(line)[1], object, part["tcontext"]),
				"restorecon -R /etc/libvirt/hooks /usr/local/sbin; if it stays, ausearch -m avc -ts recent | audit2allow -M vmfabric, and semodule -i vmfabric.pp")
		}
		if !slices.ContainsFunc(found, func(other Finding) bool { return other.What == f.What }) {
			found = append(found, f)
		}
	}
	return found
}
