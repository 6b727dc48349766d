package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var kernels = flag.String("kernels", "", "boot the kernels of these `releases` of Debian, with the demonstration and tests of fabric/kernel inside (make kerneltest)")

// testsInside are the tests of fabric/kernel that judge neither how fast something is nor
// what is lost meanwhile: all is emulated.
var testsInside = []string{
	"TestConformance", "TestAnnouncerConformance", "TestPutMakesWholePort", "TestFormerNames", "TestLinksAreFollowed",
	"TestCompetingRoute", "TestForeignRoute", "TestForeignRouteInTheWay", "TestOneNetlink", "TestReconfigure", "TestProbeFeatures",
	"TestDivertPorts", "TestDivertRestart", "TestDivertNoNeighbour", "TestDivertLocal",
	"TestIncomingHolds", "TestIncomingLocal", "TestIncomingSwitch", "TestIncomingNeighbours", "TestIncomingUnderlay", "TestIncomingSources",
	"TestFIBPutReplaceRemove", "TestFIBOtherFamily", "TestFIBRepairs", "TestFIBAdopts", "TestFIBForeign", "TestFIBOwnPortWins",
	"TestGuestReach", "TestTakenAddress", "TestFirewallRules", "TestIsolation", "TestGuardStays",
}

// TestBootedKernels boots kernels, and has each show the whole system and hold the laws of
// the dataplane.
func TestBootedKernels(t *testing.T) {
	if *kernels == "" {
		t.Skip("by hand: make kerneltest")
	}
	labtest.Need(t, "root")
	require.NoError(t, machine.Available(t.Context()))
	files := t.TempDir()
	static(t, "build", filepath.Join(files, "vmfabric"), "../../cmd/vmfabric")
	static(t, "test", filepath.Join(files, "kernel.test"), "../../fabric/kernel", "-c")
	for release := range strings.FieldsFuncSeq(*kernels, func(r rune) bool { return r == ',' }) {
		t.Run(release, func(t *testing.T) {
			image, err := machine.Debian(t.Context(), release)
			require.NoError(t, err)
			lab, _ := labtest.Build(t, core.SmallCluster(0))
			m, err := machine.Boot(emulated(t), lab, machine.Options{Name: "kernel", Image: image, Files: files, Addresses: []netip.Addr{core.Underlay4(21), core.Underlay6(21)}, Memory: 1024})
			require.NoError(t, err)
			version, err := m.Run(emulated(t), "uname -rv | sed 's/ .* Debian / (/; s/ .[0-9-]*)$/)/'")
			require.NoError(t, err)
			shows := demonstrates(t, m)
			passed, others := testsOf(t, m)
			fmt.Printf("| %s | %s | %s | %s |\n", release, strings.TrimSpace(version), shows, strings.Join(append([]string{fmt.Sprint(passed, " of ", len(testsInside), " pass")}, others...), ", "))
		})
	}
}

// static builds a program that runs on any Linux.
func static(t *testing.T, verb, to string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{verb, "-ldflags=-s -w", "-o", to}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// demonstrates runs the demonstration to its end, and returns how long that took.
func demonstrates(t *testing.T, m *machine.Machine) string {
	t.Helper()
	began := time.Now()
	out, errs, code, err := m.Do(emulated(t), "./vmfabric demo")
	require.NoError(t, err)
	t.Logf("vmfabric demo\n%s%s", out, errs)
	if !assert.Zero(t, code, "vmfabric demo") {
		return "fails"
	}
	return time.Since(began).Round(time.Second).String()
}

var verdicts = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+)`)

// testsOf runs the tests, and returns how many passed, and what became of the others. Each
// has a process of its own, so that none ends the others.
func testsOf(t *testing.T, m *machine.Machine) (passed int, others []string) {
	t.Helper()
	for _, name := range testsInside {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		out, _, code, err := m.Do(ctx, "VMFABRIC_LAB=must ./kernel.test -test.v -test.timeout 8m -test.run '^"+name+"$' >log 2>&1; code=$?; tail -c 20000 log; exit $code")
		cancel()
		require.NoError(t, err)
		became := "is not there"
		if v := verdicts.FindStringSubmatch(out); v != nil {
			became = v[1]
		}
		if code == 0 && became == "PASS" {
			passed++
			continue
		}
		others = append(others, name+" "+became)
		assert.Fail(t, name, "%s\n%s", became, out)
	}
	return passed, others
}
