package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

func guest(name string, s fabric.State) fabric.Desired {
	return fabric.Desired{
		VM: fabric.VM{Name: name, UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", NICs: []fabric.NIC{{
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
			Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")},
			Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000,
		}}},
		State: s, Since: time.Date(2026, 11, 22, 12, 3, 4, 5, time.UTC), Boot: "b1",
	}
}

func open(t *testing.T, dir string, opts ...Option) *Store {
	t.Helper()
	s, err := Open(dir, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// put keeps guests in a new directory and closes it.
func put(t *testing.T, guests ...fabric.Desired) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	for _, d := range guests {
		require.NoError(t, s.Put(t.Context(), d))
	}
	require.NoError(t, s.Close())
	return dir
}

func names(guests []fabric.Desired) []string {
	out := []string{}
	for _, d := range guests {
		out = append(out, d.VM.Name)
	}
	return out
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "guests"))
	require.NoError(t, err)
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// settled leaves out the temporary file that an open store keeps ready.
func settled(files []string) []string {
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasPrefix(f, tempStart) })
}

func TestGuestsComeBackUnderAnyName(t *testing.T) {
	long := strings.Repeat("й", 90)
	all := []string{
		"web", "Web", "my server", "Мой сервер", ".hidden", "..", "a%41", "aA", "web.json", "web.json.new", ".tmp-1",
		"a:b", `c:\d`, strings.Repeat("x", fabric.MaxNameBytes), strings.Repeat(" ", fabric.MaxNameBytes), long, long[:178] + "ю",
	}
	dir := filepath.Join(t.TempDir(), "a", "state")
	s := open(t, dir)
	for _, name := range all {
		require.NoError(t, s.Put(t.Context(), guest(name, fabric.Live)), name)
	}
	for _, closed := range []bool{false, true} {
		if closed {
			require.NoError(t, s.Close())
			s = open(t, dir)
		}
		got, err := s.All(t.Context())
		require.NoError(t, err)
		assert.ElementsMatch(t, all, names(got))
		for _, d := range got {
			assert.Equal(t, guest(d.VM.Name, fabric.Live), d)
		}
	}
	assert.Len(t, settled(files(t, dir)), len(all))
	for _, f := range files(t, dir) {
		assert.LessOrEqual(t, len(f)+len(newSuffix), 255, f)
	}
	for _, name := range all {
		require.NoError(t, s.Delete(t.Context(), name))
		require.NoError(t, s.Delete(t.Context(), name), "of what is absent")
	}
	assert.Empty(t, settled(files(t, dir)))
}

func TestFileIsForPeople(t *testing.T) {
	dir := put(t, guest("web", fabric.Live))
	got, err := os.ReadFile(filepath.Join(dir, "guests", "web.json"))
	require.NoError(t, err)
	assert.Equal(t, `{
  "format": 1,
  "sum": "sha256:71e71214116ab7646ef223def0671d494d6b6390aee9c1d6a06d3db3393a7a16",
  "guest": {
    "vm": {
      "name": "web",
      "uuid": "aaaaaaaa-0000-4000-8000-000000000001",
      "origin": "libvirt",
      "nics": [
        {
          "addresses": [
            "203.0.113.10",
            "2001:db8:100::10"
          ],
          "routes": [
            "198.51.100.0/29",
            "2001:db8:200::/64"
          ],
          "kind": "tap",
          "mac": "52:54:00:00:00:0a",
          "queues": 2,
          "mtu": 9000
        }
      ]
    },
    "state": "live",
    "since": "2026-11-22T12:03:04.000000005Z",
    "boot": "b1"
  }
}
`, string(got))
	marker, err := os.ReadFile(filepath.Join(dir, "format"))
	require.NoError(t, err)
	assert.Equal(t, "vmfabric state 1\n", string(marker))
}

func TestOnlyTheOwnerReads(t *testing.T) {
	dir := put(t, guest("web", fabric.Live))
	for path, want := range map[string]fs.FileMode{
		"": 0o700, "guests": 0o700, "format": 0o600, "guests/web.json": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		assert.Equal(t, want, info.Mode().Perm(), path)
	}
}

func TestDamageIsAnErrorAndTheRestIsRead(t *testing.T) {
	whole, err := encode(guest("web", fabric.Live))
	require.NoError(t, err)
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(whole), old, new, 1)) }
	for name, c := range map[string]struct {
		file    string
		content []byte
		want    []string
	}{
		"empty":         {"web.json", nil, []string{"web.json: damaged (", "remove it, attach"}},
		"truncated":     {"web.json", whole[:len(whole)/2], []string{"web.json: damaged ("}},
		"half-written":  {"web.json", append(make([]byte, 100), whole[100:]...), []string{"web.json: damaged ("}},
		"edited":        {"web.json", edit("203.0.113.10", "203.0.113.11"), []string{"web.json: damaged (its checksum is sha256:", "if you edited it"}},
		"no format":     {"web.json", edit(`"format": 1,`, ""), []string{"web.json: damaged (no format)"}},
		"no guest":      {"web.json", []byte(`{"format":1}`), []string{"web.json: damaged (no guest)"}},
		"newer":         {"web.json", edit(`"format": 1`, `"format": 2`), []string{"web.json: written in format 2, this version reads 1", "run the newer version"}},
		"other's file":  {"mail.json", whole, []string{`mail.json: it is of guest "web", whose file is web.json`}},
		"a copy":        {"web (copy).json", whole, []string{`web (copy).json: it is of guest "web"`}},
		"damaged later": {"web.json.new", whole[:50], []string{"web.json.new: damaged ("}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := put(t, guest("db", fabric.Wired), guest("zoo", fabric.Live))
			s := open(t, dir)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "guests", c.file), c.content, 0o600))
			got, err := s.All(t.Context())
			require.Error(t, err)
			for _, w := range append(c.want, dir) {
				assert.Contains(t, err.Error(), w)
			}
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, []string{"db", "zoo"}, names(got))
		})
	}
	t.Run("cannot be opened", func(t *testing.T) {
		dir := put(t, guest("db", fabric.Wired))
		require.NoError(t, os.Symlink("web.json", filepath.Join(dir, "guests", "web.json")))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "guests", "x.json"), nil, 0o600))
		got, err := open(t, dir).All(t.Context())
		assert.ErrorContains(t, err, "web.json: too many levels of symbolic links")
		assert.ErrorContains(t, err, "x.json: damaged", "each bad file is told")
		assert.Equal(t, []string{"db"}, names(got))
	})
}

func TestEveryFlippedBitIsSeen(t *testing.T) {
	want := guest("web", fabric.Live)
	content, err := encode(want)
	require.NoError(t, err)
	for i := range content {
		for bit := range 8 {
			content[i] ^= 1 << bit
			if got, err := parse("web", content); err == nil {
				require.Equal(t, want, got, "byte %d bit %d", i, bit)
			}
			content[i] ^= 1 << bit
		}
	}
}

func TestWhatIsNotOursIsIgnored(t *testing.T) {
	dir := put(t, guest("web", fabric.Live))
	for _, f := range []string{"README", "web.json~", ".tmp-77", "web.bak", "web.new"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "guests", f), []byte("x"), 0o600))
	}
	s := open(t, dir)
	got, err := s.All(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"web"}, names(got))
	assert.NotContains(t, files(t, dir), ".tmp-77", "the leftover of a killed writer")
	assert.Contains(t, files(t, dir), "README")
	assert.Empty(t, s.Diagnose(t.Context()))
}

func TestUnreadableDirectoryIsNoEmptySet(t *testing.T) {
	dir := put(t, guest("web", fabric.Live))
	s := open(t, dir)
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "guests")))
	_, err := s.All(t.Context())
	assert.ErrorContains(t, err, "guests: no such file or directory; ")
	assert.ErrorContains(t, s.Put(t.Context(), guest("web", fabric.Live)), "state of web: ")

	_, err = Open(filepath.Join(dir, "format"))
	assert.ErrorContains(t, err, "not a directory")
}

func TestFresh(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	assert.True(t, s.Fresh(), "an empty directory")
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	require.NoError(t, s.Close())
	assert.False(t, open(t, root).Fresh())

	require.NoError(t, os.Truncate(filepath.Join(root, "format"), 0))
	assert.False(t, open(t, root).Fresh(), "without its marker, but with guests")
	marker, err := os.ReadFile(filepath.Join(root, "format"))
	require.NoError(t, err)
	assert.Equal(t, "vmfabric state 1\n", string(marker))

	require.NoError(t, os.RemoveAll(filepath.Join(root, "guests")))
	assert.True(t, open(t, root).Fresh(), "somebody removed the guests")
	assert.True(t, open(t, filepath.Join(root, "new")).Fresh(), "no directory")
}

// TestDamagedMarker: a marker that says nothing does not keep an agent from its guests.
func TestDamagedMarker(t *testing.T) {
	root := filepath.Join(t.TempDir(), "state")
	s := open(t, root)
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	require.NoError(t, s.Close())
	marker := filepath.Join(root, "format")
	for _, content := range []string{"\x00\xff", "vmfabric st", ""} {
		require.NoError(t, os.WriteFile(marker, []byte(content), 0o600))
		s := open(t, root)
		assert.False(t, s.Fresh())
		guests, err := s.All(t.Context())
		require.NoError(t, err)
		assert.Len(t, guests, 1)
		text, err := os.ReadFile(marker)
		require.NoError(t, err)
		assert.Equal(t, "vmfabric state 1\n", string(text))
		require.NoError(t, s.Close())
	}
}

func TestOtherFormatsAreRefused(t *testing.T) {
	for content, want := range map[string]string{
		"vmfabric state 2\n": "format 2, this version reads 1; run the newer version",
		"ext4\n":             "is not the marker of a state directory; name another directory",
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "format"), []byte(content), 0o600))
		_, err := Open(dir)
		assert.ErrorContains(t, err, want)
	}
}

func TestIdenticalPutWritesNothing(t *testing.T) {
	dir := put(t, guest("web", fabric.Live))
	file := filepath.Join(dir, "guests", "web.json")
	before, err := os.Stat(file)
	require.NoError(t, err)
	s := open(t, dir)
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	assert.Equal(t, []string{"web.json"}, settled(files(t, dir)))

	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Wired)))
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)), "back to what the old file holds")
	require.NoError(t, s.Close())
	after, err := os.Stat(file)
	require.NoError(t, err)
	assert.False(t, os.SameFile(before, after))
	got, err := open(t, dir).All(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []fabric.Desired{guest("web", fabric.Live)}, got)
}

func TestRefusedPuts(t *testing.T) {
	dir := put(t)
	s := open(t, dir)
	nameless, stateless, latin := guest("", fabric.Live), guest("web", 0), guest("caf\xe9", fabric.Live)
	assert.EqualError(t, s.Put(t.Context(), nameless), "state of a guest: the guest has no name")
	assert.EqualError(t, s.Put(t.Context(), stateless), "state of web: the guest has no state")
	assert.ErrorContains(t, s.Put(t.Context(), latin), "is not UTF-8")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Put(ctx, guest("web", fabric.Live)), context.Canceled)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Put(t.Context(), guest("web", fabric.Live)), fs.ErrClosed)
	require.ErrorIs(t, s.Delete(t.Context(), "web"), fs.ErrClosed)
	_, err := s.All(t.Context())
	require.ErrorIs(t, err, fs.ErrClosed)
	assert.Empty(t, files(t, dir))
}

// A power cut leaves a change that was not yet safe in any shape, and what was
// there before it whole.
func TestPowerCutTakesTheLastChangeOnly(t *testing.T) {
	dir := put(t, guest("web", fabric.Wired), guest("db", fabric.Wired))
	change, err := encode(guest("web", fabric.Live))
	require.NoError(t, err)
	in := func(file string) string { return filepath.Join(dir, "guests", file) }
	require.NoError(t, os.WriteFile(in("web.json.new"), make([]byte, len(change)), 0o600))
	require.NoError(t, os.WriteFile(in("first.json.new"), nil, 0o600))
	whole, err := encode(guest("db", fabric.Live))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(in("db.json.new"), whole, 0o600))

	s := open(t, dir)
	got, err := s.All(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []fabric.Desired{guest("db", fabric.Live), guest("web", fabric.Wired)}, got)
	assert.Equal(t, []string{
		"state of guest first: a power cut took its last change; attach the guest again, or restart it",
		"state of guest web: a power cut took its last change; attach the guest again, or restart it",
	}, s.Diagnose(t.Context()))
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	require.NoError(t, s.Delete(t.Context(), "first"))
	assert.Empty(t, s.Diagnose(t.Context()))
	require.NoError(t, s.Close())
	assert.Equal(t, []string{"db.json", "web.json"}, files(t, dir))
}

func TestChangesBecomeSafeByThemselves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	for i := range 20 {
		require.NoError(t, s.Put(t.Context(), guest(fmt.Sprint("g", i), fabric.Live)))
	}
	require.NoError(t, s.Delete(t.Context(), "g0"))
	require.Eventually(t, func() bool {
		for _, f := range files(t, dir) {
			if strings.HasSuffix(f, newSuffix) {
				return false
			}
		}
		return true
	}, 10*time.Second, time.Millisecond)
	assert.Len(t, settled(files(t, dir)), 19)
}

// badDisk is a disk on which nothing can be made safe while it is broken.
type badDisk struct {
	mu     sync.Mutex
	broken bool
	synced map[string]int
}

func (b *badDisk) set(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
}

func (b *badDisk) sync(path string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return &fs.PathError{Op: "sync", Path: path, Err: errors.New("input/output error")}
	}
	b.synced[filepath.Base(path)]++
	return nil
}

func TestDiskThatCannotSyncIsTold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	disk := &badDisk{synced: map[string]int{}}
	s := open(t, dir, func(o *options) { o.sync, o.retry = disk.sync, 50*time.Millisecond })
	disk.set(true)
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, 10*time.Second, time.Millisecond)
	assert.Regexp(t, `^state is not safe from a power cut: sync .*web.json.new: input/output error; check the disk$`, s.Diagnose(t.Context())[0])
	first, err := os.Stat(filepath.Join(dir, "guests", "web.json.new"))
	require.NoError(t, err)

	require.EqualError(t, s.Put(t.Context(), guest("db", fabric.Live)), s.Diagnose(t.Context())[0])
	require.NoError(t, s.Delete(t.Context(), "nothing"), "told once")
	got, err := s.All(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"db", "web"}, names(got), "kept all the same")

	disk.set(false)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 0 }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	assert.Equal(t, []string{"db.json", "web.json"}, files(t, dir))
	last, err := os.Stat(filepath.Join(dir, "guests", "web.json"))
	require.NoError(t, err)
	assert.False(t, os.SameFile(first, last), "written anew: a second fsync of the same file may lie")
}

func TestCloseTellsWhatIsNotSafe(t *testing.T) {
	disk := &badDisk{broken: false, synced: map[string]int{}}
	s := open(t, filepath.Join(t.TempDir(), "state"), WithSyncDelay(time.Hour), func(o *options) { o.sync = disk.sync })
	require.NoError(t, s.Put(t.Context(), guest("web", fabric.Live)))
	disk.set(true)
	assert.ErrorContains(t, s.Close(), "not safe from a power cut")
}

func TestManyAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir, WithSyncDelay(time.Millisecond))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine, shared := fmt.Sprint("g", i), "shared"
			for round := range 25 {
				state := fabric.Wired + fabric.State(round%2)
				assert.NoError(t, s.Put(t.Context(), guest(mine, state)))
				assert.NoError(t, s.Put(t.Context(), guest(shared, state)))
				if round%5 == 4 {
					assert.NoError(t, s.Delete(t.Context(), mine))
				}
				_, err := s.All(t.Context())
				assert.NoError(t, err)
			}
			assert.NoError(t, s.Put(t.Context(), guest(mine, fabric.Live)))
		})
	}
	wg.Wait()
	require.NoError(t, s.Close())
	got, err := open(t, dir).All(t.Context())
	require.NoError(t, err)
	assert.Len(t, got, 9)
	for _, f := range settled(files(t, dir)) {
		assert.True(t, strings.HasSuffix(f, suffix), f)
	}
}

func FuzzRead(f *testing.F) {
	whole, err := encode(guest("web", fabric.Live))
	require.NoError(f, err)
	f.Add("web", whole)
	f.Add("web", whole[:100])
	f.Add("web", []byte(`{"format":2}`))
	f.Add("x", []byte(`{"format":1,"sum":"","guest":{}}`))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		d, err := parse(name, content)
		if err != nil {
			require.Zero(t, d)
			return
		}
		require.Equal(t, name, fileName(d.VM.Name))
		again, err := encode(d)
		require.NoError(t, err)
		back, err := parse(name, again)
		require.NoError(t, err)
		require.Equal(t, d, back)
	})
}

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		name   string
		states []fabric.State
	}{
		{"changed", []fabric.State{fabric.Wired, fabric.Live}},
		{"identical", []fabric.State{fabric.Live, fabric.Live}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, err := Open(b.TempDir())
			require.NoError(b, err)
			defer s.Close()
			for i := 0; b.Loop(); i++ {
				if err := s.Put(b.Context(), guest("web", c.states[i%2])); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
