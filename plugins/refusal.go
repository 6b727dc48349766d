package plugins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errNetwork refuses a plugin that listens where every user can call it.
var errNetwork = errors.New("it does not listen on a unix socket; make it listen on one in the directory $PLUGIN_UNIX_SOCKET_DIR")

// wrongKind refuses a plugin of another kind.
type wrongKind struct {
	want kind
	is   []string
}

func (w wrongKind) Error() string {
	is := "nothing"
	if len(w.is) > 0 {
		is = article(strings.Join(w.is, " and "))
	}
	var ways []string
	for _, k := range []kind{speaker, resolver, observer} {
		if slices.Contains(w.is, string(k)) {
			ways = append(ways, k.setting("..."))
		}
	}
	way := "name another program"
	if len(ways) > 0 {
		way = fmt.Sprintf("write %s into the cluster file, or name another program", strings.Join(ways, ", "))
	}
	return fmt.Sprintf("it is %s, not %s; %s", is, article(string(w.want)), way)
}

func article(s string) string {
	if strings.HasPrefix(s, string(observer)) {
		return "an " + s
	}
	return "a " + s
}

// refusal says, for people, why a plugin could not be started. go-plugin's own
// errors are for its programmers, so refusal looks at what the process did.
func (p *process) refusal(program Program, err error, timeout bool, limit time.Duration) error {
	var wrong wrongKind
	if errors.As(err, &wrong) || errors.Is(err, errNetwork) {
		return err
	}
	p.child.mu.Lock()
	failed, started := p.child.failed, p.child.pid != 0
	p.child.mu.Unlock()
	switch {
	case failed != nil:
		return notExecuted(program.Path, failed)
	case !started:
		return err
	}
	exited := p.child.hasExited(dying)
	if exited {
		p.child.out.readers.Wait()
	}
	first, last := p.child.out.lines()
	if first != "" {
		if why := wrongHello(first); why != nil {
			return why
		}
	}
	switch {
	case timeout && first != "":
		return fmt.Errorf("no answer to the handshake within %v: it hangs; see what it waits for", limit)
	case timeout:
		return fmt.Errorf("it said nothing within %v; is it a plugin of vmfabric?", limit)
	case exited && (first != "" || last != ""):
		return errors.New(p.child.exitReason())
	case exited:
		return errors.New(p.child.exitReason() + " without a word; is it a plugin of vmfabric?")
	}
	return err
}

// wrongHello says what is wrong with the line of the handshake. The line has
// go-plugin's fields: core version, protocol version, network, address, transport.
func wrongHello(line string) error {
	parts := strings.Split(line, "|")
	if len(parts) < 4 {
		return fmt.Errorf("it said %.80q instead of a handshake; is it a plugin of vmfabric?", line)
	}
	switch version, err := strconv.Atoi(parts[1]); {
	case err != nil || parts[0] != "1":
		return fmt.Errorf("its handshake %.80q is not one that this agent knows; build it with this agent's package plugins", line)
	case version != ProtocolVersion:
		return fmt.Errorf("it speaks version %d of the plugin protocol, this agent version %d; install the plugin and the agent of one release, or build it anew", version, ProtocolVersion)
	case len(parts) < 5 || parts[4] != "grpc":
		return fmt.Errorf("its handshake %.80q does not say grpc; build it with this agent's package plugins", line)
	}
	return nil
}

// notExecuted says why the program did not even begin to run.
func notExecuted(path string, err error) error {
	info, statErr := os.Stat(path)
	var sys syscall.Errno
	switch {
	case errors.Is(statErr, fs.ErrNotExist):
		return errors.New("there is no such file; install it, or correct the path")
	case statErr == nil && info.IsDir():
		return errors.New("it is a directory; name the program in it")
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("it cannot be executed: permission denied; chmod +x %s, and see that the file system is not mounted noexec", path)
	case errors.Is(err, syscall.ENOEXEC):
		return errors.New("it is no program of this machine: exec format error; install the one for its architecture")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the interpreter in its first line, or its dynamic loader, is missing; install that")
	case errors.As(err, &sys):
		return fmt.Errorf("it cannot be executed: %w", sys)
	}
	return err
}
