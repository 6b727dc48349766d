package core_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// usernsEnv says in which of the processes of TestUnprivileged the test runs:
// "user" is an unprivileged one, "lab" one in a user namespace.
const usernsEnv = "VMFABRIC_TESTENV_USERNS"

// TestUnprivileged runs the tests of the topology, which need no daemon, in a
// user namespace of an unprivileged user.
func TestUnprivileged(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	if os.Geteuid() != 0 && os.Getenv(usernsEnv) == "" {
		t.Setenv(usernsEnv, "user")
	}
	const tests = "^(TestUnprivileged|TestEveryHostReachesEveryOther|TestGuestMoves|TestTrafficOfTwoGuestsStaysApart|TestProbe.*|TestCloseLeavesNothing|TestKeeper.*)$"
	cmd := exec.Command("/proc/self/exe", "-test.run="+tests, "-test.v")
	switch os.Getenv(usernsEnv) {
	case "lab":
		return
	case "user":
		cmd.Env = append(os.Environ(), usernsEnv+"=lab")
		cmd.SysProcAttr = core.UserNamespace()
	default:
		t.Parallel()
		cmd.Env = append(os.Environ(), usernsEnv+"=user", "HOME=/nonexistent")
		cmd.Args[1] = "-test.run=^TestUnprivileged$"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) || strings.Contains(string(out), "--- SKIP") {
		labtest.Missing(t, fmt.Errorf("user namespaces are not for everybody here: %v: %s", err, out))
	}
	require.NoError(t, err, "%s", out)
}
