// Versions tries other versions of libvirt, QEMU, BIRD and FRR than the machine's: those of
// other releases of Debian. It runs the tests that need these programs with each release,
// and after that live moves between a node with the programs of one release and a node with
// those of the next. It prints what it ran, and what came of it, as a table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/testenv/lab/machine"
)

// here stands for the machine's own programs among the releases.
const here = "here"

// suite is a package's tests that need the programs.
type suite struct {
	dir, tests string
	of         map[string]string // the tests for a release whose programs are too old for others (docs/versions.md); empty: none
}

// testsOf gives the tests for a release.
func (s suite) testsOf(release string) string {
	if tests, few := s.of[release]; few {
		return tests
	}
	return s.tests
}

// routing are the tests of BIRD and FRR.
var routing = []suite{
	{"testenv/lab/routers", ".", map[string]string{"bullseye": "^TestBird.*$/^plain$"}},
	{"fabric/routingd", ".", map[string]string{"bullseye": ""}},
	{"internal/render", "^TestRouter", map[string]string{"bullseye": "^TestRouterAccepted$/bird$"}},
	{"internal/e2e", "^Test(EveryCombination|MainAndBackup|RogueReflectors|ReflectorsWithoutAFamily|NotificationsAreTold|EmbeddedReflectors)$", map[string]string{"bullseye": ""}},
}

// hypervisors are the tests of libvirt and QEMU.
var hypervisors = suite{dir: "internal/e2e", tests: "^Test(GuestReachesTheInternet|FailedStartLeavesNothing|DomainsOfEveryShape|AgentAndLibvirtComeAndGo|HangingLibvirt|" +
	"HookThatLibvirtdDoesNotKnow|NICsOfEveryShape|RunningGuestKeepsWhatItStartedWith|CopyOfAGuest|Moves|MovesBackAndForth|FailedMoves|OddMoves|NodeReturns|AbortedMoves)$"}

// moves are the tests in which a guest moves between two nodes.
var moves = suite{dir: "internal/e2e", tests: "^Test(Moves|MovesBackAndForth|FailedMoves)$"}

// enter has a root file system in the place of this machine's programs, all but those that
// were not installed by its distribution (Go), and runs a program.
const enter = `set -e
root=$1
shift
mount --make-rprivate /
mount --bind /usr/local "$root/usr/local"
mount --rbind "$root/usr" /usr
mount --bind "$root/etc/ld.so.cache" /etc/ld.so.cache
exec "$@"`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	releases := flag.String("releases", "bullseye,here,trixie", "releases of Debian, in the order of an upgrade; here is this machine's own")
	only := flag.String("run", "", "run these tests alone, instead of those of each package")
	logs := flag.String("logs", "", "keep what the tests print in this directory")
	flag.Parse()
	t := trial{releases: strings.Split(*releases, ","), only: *only, logs: *logs, roots: map[string]string{}}
	if err := t.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "versions: %v\n", err)
		os.Exit(1)
	}
}

// trial is one run over all releases.
type trial struct {
	releases []string
	only     string
	logs     string            // a directory
	roots    map[string]string // by release; here has none
	binaries string            // a directory, of the tests of each package
	rows     []string
	failed   []string
}

func (t *trial) run(ctx context.Context) (err error) {
	if t.binaries, err = os.MkdirTemp("", "vmfabric-versions-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(t.binaries)) }()
	if t.logs == "" {
		t.logs = t.binaries
	}
	if err := t.prepare(ctx); err != nil {
		return err
	}
	for _, r := range t.releases {
		if r == here {
			continue // make test tries those
		}
		if err := t.try(ctx, r); err != nil {
			return err
		}
	}
	for i, to := range t.releases[1:] {
		if err := t.move(ctx, t.releases[i], to); err != nil {
			return err
		}
	}
	fmt.Printf("| programs | versions | tests | passed | skipped | failed |\n| --- | --- | --- | ---: | ---: | --- |\n%s", strings.Join(t.rows, ""))
	if len(t.failed) > 0 {
		return fmt.Errorf("failed: %s; what they print is kept with -logs", strings.Join(t.failed, ", "))
	}
	return nil
}

// prepare makes the root file systems and the programs of the tests. The programs are
// static: the libraries are another release's when they run.
func (t *trial) prepare(ctx context.Context) (err error) {
	for _, r := range t.releases {
		if r == here {
			continue
		}
		if t.roots[r], err = machine.Programs(ctx, r); err != nil {
			return err
		}
	}
	for _, s := range routing {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", t.binary(s), "./"+s.dir)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", s.dir, err, out)
		}
	}
	return nil
}

func (t *trial) binary(s suite) string {
	return filepath.Join(t.binaries, strings.ReplaceAll(s.dir, "/", "-")+".test")
}

// try runs the tests with the programs of a release: those of routing daemons in a mount
// namespace in which it has the place of /usr, those of hypervisors with its libvirt on both
// nodes.
func (t *trial) try(ctx context.Context, release string) error {
	within := []string{"--mount", "sh", "-c", enter, "sh", t.roots[release]}
	out, err := exec.CommandContext(ctx, "unshare", append(within, "sh", "-c", versions)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("versions of %s: %w: %s", release, err, out)
	}
	is := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(is) != 4 {
		return fmt.Errorf("versions of %s: %s", release, out)
	}
	for _, s := range routing {
		if s.testsOf(release) == "" {
			continue
		}
		if err := t.test(ctx, s, release, row{release, is[2] + ", " + is[3], s.dir}, "unshare", append(within, t.binary(s))...); err != nil {
			return err
		}
	}
	roots := fmt.Sprintf("node1=%s,node2=%[1]s", t.roots[release])
	return t.test(ctx, hypervisors, release, row{release, is[0] + ", " + is[1], "a life, and moves"}, t.binary(hypervisors), "-roots", roots)
}

// versions prints the versions of the programs, on a line each.
const versions = `libvirtd --version | sed 's/.* /libvirt /'
qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/QEMU \1/p'
bird --version 2>&1 | sed 's/ version//'
/usr/lib/frr/bgpd --version | sed -n 's/bgpd version/FRR/p'`

// move moves guests between a node with the programs of one release and one with those of
// another, both ways.
func (t *trial) move(ctx context.Context, from, to string) error {
	var of []string
	for node, release := range map[string]string{"node1": from, "node2": to} {
		if release != here {
			of = append(of, node+"="+t.roots[release])
		}
	}
	return t.test(ctx, moves, "", row{from + " and " + to, "as above", "moves between them"}, t.binary(moves), "-roots", strings.Join(of, ","))
}

// row is the beginning of a row of the table.
type row struct{ programs, versions, tests string }

// test runs a program of tests, and counts what came of them.
func (t *trial) test(ctx context.Context, s suite, release string, r row, command string, args ...string) error {
	run := s.testsOf(release)
	if t.only != "" {
		run = t.only
	}
	name := strings.NewReplacer("/", "-", " ", "-").Replace(r.programs + " " + r.tests)
	log, err := os.Create(filepath.Join(t.logs, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().Format(time.TimeOnly), name, r.versions)
	cmd := exec.CommandContext(ctx, command, append(args, "-test.v", "-test.parallel=2", "-test.timeout=1h", "-test.run="+run)...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "VMFABRIC_LAB=must")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = log, log
	ended := cmd.Run()
	if exit := (*exec.ExitError)(nil); ended != nil && !errors.As(ended, &exit) || ctx.Err() != nil {
		return errors.Join(ended, context.Cause(ctx))
	}
	c, err := count(log)
	if err != nil {
		return err
	}
	switch {
	case ended != nil && len(c.failed) == 0:
		return fmt.Errorf("%s: %w; -logs keeps what it prints", name, ended)
	case t.only == "" && c.passed+c.skipped+len(c.failed) == 0:
		return fmt.Errorf("%s: no test is called %s", name, run)
	}
	t.rows = append(t.rows, fmt.Sprintf("| %s | %s | %s | %d | %d | %s |\n", r.programs, r.versions, r.tests, c.passed, c.skipped, strings.Join(c.failed, " ")))
	for _, test := range c.failed {
		t.failed = append(t.failed, name+" "+test)
	}
	return nil
}

// outcome is what came of the tests of a program, without those that are parts of others.
type outcome struct {
	passed, skipped int
	failed          []string
}

func count(log *os.File) (c outcome, err error) {
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return c, err
	}
	b, err := io.ReadAll(log)
	for line := range strings.Lines(string(b)) {
		kind, rest, found := strings.Cut(strings.TrimPrefix(line, "--- "), ": ")
		if !found || !strings.HasPrefix(line, "--- ") {
			continue
		}
		switch test, _, _ := strings.Cut(rest, " "); kind {
		case "PASS":
			c.passed++
		case "SKIP":
			c.skipped++
		case "FAIL":
			c.failed = append(c.failed, test)
		}
	}
	return c, err
}
