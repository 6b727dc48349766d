package libvirt

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhetherTheHookIsKnown(t *testing.T) {
	started := time.Date(2026, 11, 29, 12, 3, 4, 0, time.Local)
	before, after := started.Add(-time.Hour), started.Add(time.Second)
	const own, single, other = "/etc/libvirt/hooks/qemu.d/vmfabric", "/etc/libvirt/hooks/qemu", "/etc/libvirt/hooks/qemu.d/backup"
	const end = "systemctl restart libvirtd (guests go on running)"
	missing := func(path string) string {
		return "libvirt: there is no hook " + path + ", so guests of the fabric do not start, or without it; install it there, then " + end + "; or follow no libvirt"
	}
	late := func(path string) string {
		return "libvirt: libvirtd, which has run since 2026-11-29 12:03:04, may not know the hook " + path + ", which came later: guests of the fabric do not start then, or without it; " + end
	}
	inert := func(path string) string {
		return "libvirt: the hook " + path + " is not executable, so guests of the fabric do not start, or without it; chmod 755 " + path + ", then " + end
	}
	for name, c := range map[string]struct {
		files []hookFile
		old   bool // a libvirt that knows nothing of qemu.d
		known bool
		says  string
	}{
		"there before":                 {files: []hookFile{{own, true, before}}},
		"came later":                   {files: []hookFile{{own, true, after}}, says: late(own)},
		"came later, and was called":   {files: []hookFile{{own, true, after}}, known: true},
		"came later, beside another":   {files: []hookFile{{own, true, after}, {other, true, before}}},
		"came later, beside the old":   {files: []hookFile{{own, true, after}, {single, true, before}}},
		"came later, with another":     {files: []hookFile{{own, true, after}, {other, true, after}}, says: late(own)},
		"beside one that is no hook":   {files: []hookFile{{own, true, after}, {other, false, before}}, says: late(own)},
		"the only one":                 {files: []hookFile{{single, true, before}}},
		"the only one, came later":     {files: []hookFile{{single, true, after}}, says: late(single)},
		"none":                         {says: missing(own)},
		"none but another's":           {files: []hookFile{{other, true, before}}, says: missing(own)},
		"none any more":                {known: true, says: missing(own)},
		"not executable":               {files: []hookFile{{own, false, before}}, says: inert(own)},
		"not executable any more":      {files: []hookFile{{own, false, after}}, known: true, says: inert(own)},
		"made executable later":        {files: []hookFile{{own, true, after}}, says: late(own)},
		"old libvirt":                  {files: []hookFile{{single, true, before}}, old: true},
		"old libvirt, came later":      {files: []hookFile{{single, true, after}}, old: true, says: late(single)},
		"old libvirt, in the new's":    {files: []hookFile{{own, true, before}}, old: true, says: missing(single)},
		"old libvirt, beside the new":  {files: []hookFile{{single, true, after}, {own, true, before}}, old: true, says: late(single)},
		"old libvirt, none":            {old: true, says: missing(single)},
		"old libvirt, not executable":  {files: []hookFile{{single, false, before}}, old: true, says: inert(single)},
		"old libvirt, and was called":  {files: []hookFile{{single, true, after}}, old: true, known: true},
		"one for all, ours not usable": {files: []hookFile{{single, true, before}, {own, false, before}}, says: inert(own)},
	} {
		h := hookState{dir: DefaultHooks, daemon: "libvirtd", dropIns: !c.old, started: started, known: c.known, files: c.files}
		assert.Equal(t, c.says, h.problem(), name)
	}
}

func TestHookFiles(t *testing.T) {
	began := time.Now()
	dir := t.TempDir()
	files, err := hookFiles(rootOf(os.Getpid()), dir)
	require.NoError(t, err)
	assert.Empty(t, files)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "qemu.d", "directory"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "qemu"), nil, 0o644))
	own := filepath.Join(dir, "qemu.d", "vmfabric")
	require.NoError(t, os.WriteFile(own, nil, 0o755))
	long := began.Add(-time.Hour)
	require.NoError(t, os.Chtimes(own, long, long)) // as a package has it
	require.NoError(t, os.Symlink(own, filepath.Join(dir, "qemu.d", "link")))
	files, err = hookFiles(rootOf(os.Getpid()), dir)
	require.NoError(t, err)
	require.Len(t, files, 3)
	for i, want := range []hookFile{{filepath.Join(dir, "qemu"), false, began}, {filepath.Join(dir, "qemu.d", "link"), true, began}, {own, true, began}} {
		assert.Equal(t, want.path, files[i].path)
		assert.Equal(t, want.executable, files[i].executable, want.path)
		assert.WithinDuration(t, began, files[i].changed, time.Minute, "%s: when it was put there", want.path)
	}
	_, err = hookFiles(rootOf(-1), dir) // whose files cannot be seen
	assert.NoError(t, err)
}

func TestProcess(t *testing.T) {
	p, err := readProcess(os.Getpid())
	require.NoError(t, err)
	assert.True(t, p.started.Before(time.Now().Add(time.Second)))
	assert.WithinDuration(t, time.Now(), p.started, time.Hour)
	again, err := readProcess(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, p.life, again.life)
	parent, err := readProcess(os.Getppid())
	require.NoError(t, err)
	assert.NotEqual(t, p.life, parent.life)
	assert.False(t, parent.started.After(p.started.Add(tick)))

	name, ticks, err := parseStat("4711 (a (b) c d) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 17 0 123456 789 10")
	require.NoError(t, err)
	assert.Equal(t, "a (b) c d", name)
	assert.Equal(t, int64(123456), ticks)
	for _, bad := range []string{"", "1 (x", "1 x) S", "1 (x) S 1 2 3", "1 (x) S 1 1 1 0 -1 1 1 2 3 4 5 6 7 8 20 0 17 0 soon 7"} {
		_, _, err := parseStat(bad)
		assert.Error(t, err, bad)
	}
}

// The process at the other end is found, and one that is no libvirtd is not
// taken for one.
func TestPeer(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "virtqemud-sock"))
	require.NoError(t, err)
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	pid, err := peer(conn)
	require.NoError(t, err)
	assert.Equal(t, os.Getpid(), pid)
	if _, err := os.Stat("/run/virtqemud.pid"); err != nil {
		_, err = findDaemon(conn, l.Addr().String())
		assert.EqualError(t, err, "virtqemud: its process is not known")
	}
}

// What was proved of a libvirtd holds for the agent that comes after.
func TestProofIsKept(t *testing.T) {
	cfg := Config{Hooks: DefaultHooks, Proof: filepath.Join(t.TempDir(), "libvirt-hook")}
	s := New(cfg)
	assert.Empty(t, s.proven)
	s.prove("boot 1 2")
	assert.Equal(t, "boot 1 2", New(cfg).proven)
	s.prove("boot 3 4")
	assert.Equal(t, "boot 3 4", New(cfg).proven)
	assert.Empty(t, New(Config{}).proven)
}
