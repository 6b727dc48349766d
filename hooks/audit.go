package hooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// LevelAudit is the level of the audit log: one record for each request that may change
// something, whatever else the logger leaves out. It ranks above [slog.LevelError].
const LevelAudit slog.Level = 12

// readOps are the ops that change nothing. Import and AdoptRegistry change something
// only with Write.
var readOps = []Op{Describe, List, Status, Moves, Sent, Forwarding, Addresses, Nodes, Explain, Traffic, Blackholes}

// changes reports whether a request may change something.
func (r Request) changes() bool {
	switch r.Op {
	case Import, AdoptRegistry:
		return r.Write
	}
	return !slices.Contains(readOps, r.Op)
}

// caller is the process at the other end of a connection, as the kernel knows it.
type caller struct {
	known         bool
	uid, gid, pid int
	command       string // the process's name; empty: it has ended, or /proc is not readable
}

// callerOf asks the kernel who connected (SO_PEERCRED, unix(7)). These are the
// credentials of the process at that time.
func callerOf(conn net.Conn) (c caller) {
	unix, ok := conn.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return c
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			c.known, c.uid, c.gid, c.pid = true, int(cred.Uid), int(cred.Gid), int(cred.Pid)
		}
	})
	if c.known {
		// Not its arguments, which may have secrets.
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.pid))
		c.command = bounded(strings.TrimSuffix(string(name), "\n"))
	}
	return c
}

// maxAudited is the most bytes of one text in the audit log.
const maxAudited = 256

// bounded makes a short line of printable characters of a text from outside.
func bounded(s string) string {
	cut := len(s) > maxAudited
	if cut {
		s = strings.ToValidUTF8(s[:maxAudited], "")
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}

// audit records a request that may change something: who asked, for what, and what
// became of it. It records no secret: requests have none, and of what a request says it
// takes the names of things alone.
func (s server) audit(ctx context.Context, req Request, by caller, took time.Duration, err error) {
	attrs := []slog.Attr{slog.String("op", string(req.Op))}
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, bounded(value)))
		}
	}
	text("vm", req.VM.Name)
	text("origin", req.VM.Origin)
	if req.Prefix.IsValid() {
		text("prefix", req.Prefix.String())
	}
	text("guest", string(req.Guest))
	if req.For != 0 {
		attrs = append(attrs, slog.Duration("for", req.For))
	}
	if by.known {
		attrs = append(attrs, slog.Int("uid", by.uid), slog.Int("gid", by.gid), slog.Int("pid", by.pid))
		text("command", by.command)
	}
	outcome := "done"
	switch {
	case errors.Is(err, fabric.ErrRefused):
		outcome = "refused"
	case err != nil:
		outcome = "failed"
	}
	attrs = append(attrs, slog.String("outcome", outcome), slog.Duration("took", took))
	if err != nil {
		text("err", oneline.Of(err.Error()))
	}
	s.log.LogAttrs(ctx, LevelAudit, "request", attrs...)
}
