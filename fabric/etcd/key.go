package etcd

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// format is the version of the values. A node does not read a later one.
const format = 1

// entry is the value of a key.
type entry struct {
	Format int `json:"format"`
	// Write is the same in all that one transaction writes: whoever does not know how
	// it ended finds out by it.
	Write      string             `json:"write"`
	Allocation *fabric.Allocation `json:"allocation,omitempty"` // of an address
	VM         string             `json:"vm,omitempty"`         // of a guest, for people
	Owner      *fabric.Owner      `json:"owner,omitempty"`      // of a guest

	Incarnation *Incarnation `json:"incarnation,omitempty"` // of the registry
	Restored    *mark        `json:"restored,omitempty"`    // of a registry that was restored or replaced
}

func (e entry) encode() string {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // all of it can be encoded
	}
	return string(b)
}

// writeOf gives the Write of a value; empty: it has none.
func writeOf(value []byte) string {
	var e entry
	if json.Unmarshal(value, &e) != nil {
		return ""
	}
	return e.Write
}

// keys has the names of a cluster's keys.
type keys struct {
	root string
	node string // this node; empty: it has no name
}

func keysOf(c *fabric.Cluster) keys {
	return keys{root: c.Registry.Etcd.Prefix + "/" + c.Name + "/"}
}

func (k keys) address(p netip.Prefix) string {
	return k.root + "addr/" + hex.EncodeToString(p.Addr().AsSlice()) + "/" + strconv.Itoa(p.Bits())
}

func (k keys) guest(id fabric.Identity) string { return k.root + "guest/" + url.PathEscape(string(id)) }

// guestOf reads the key of a guest.
func (k keys) guestOf(key string) (id fabric.Identity, ok bool) {
	escaped, ok := strings.CutPrefix(key, k.root+"guest/")
	if !ok {
		return "", false
	}
	unescaped, err := url.PathUnescape(escaped)
	return fabric.Identity(unescaped), err == nil
}

// owner reads the value of a guest's key. Without one that can be read, the owner is as
// the guest's addresses say; the next owner writes it.
func (k keys) owner(key string, value []byte) (is fabric.Owner, err error) {
	var e entry
	switch err := json.Unmarshal(value, &e); {
	case e.Format > format:
		return is, laterVersion(key, e.Format)
	case err != nil:
		return is, fmt.Errorf("key %s is damaged; stop and start its guest", key)
	case e.Owner != nil:
		is = *e.Owner
	}
	return is, nil
}

// laterVersion is the error of a value that a later version wrote.
func laterVersion(key string, version int) error {
	return fmt.Errorf("key %s is of a later version (%d); bring this node to the version of the others", key, version)
}

// prefixes is changed when a length of prefixes is used that none had before.
func (k keys) prefixes() string { return k.root + "prefixes" }

// length is that of prefixes of a family, whose addresses have so many bits.
type length struct{ family, bits int }

func lengthOf(p netip.Prefix) length { return length{p.Addr().BitLen(), p.Bits()} }

// length is there since the first prefix of a length was recorded.
func (k keys) length(l length) string {
	return fmt.Sprintf("%s/%d/%d", k.prefixes(), l.family, l.bits)
}

// readLength reads the key of a length.
func (k keys) readLength(key string) (l length, is bool) {
	rest, is := strings.CutPrefix(key, k.prefixes()+"/")
	if !is {
		return l, false
	}
	_, err := fmt.Sscanf(rest, "%d/%d", &l.family, &l.bits)
	return l, err == nil && k.length(l) == key
}

// inside gives the range of keys that has all addresses and prefixes inside of p. A few
// others can be in it.
func (k keys) inside(p netip.Prefix) (first, end string) {
	addr, all := k.root+"addr/", fabric.RangeOf(p)
	return addr + hex.EncodeToString(all.First.AsSlice()) + "/", addr + hex.EncodeToString(all.Last.AsSlice()) + "0" // 0 follows the slash
}

// prefixOf reads the key of an address.
func (k keys) prefixOf(key string) (netip.Prefix, error) {
	bad := fmt.Errorf("key %s is no address of the registry; remove it if nobody needs it", key)
	digits, length, _ := strings.Cut(strings.TrimPrefix(key, k.root+"addr/"), "/")
	b, err := hex.DecodeString(digits)
	addr, ok := netip.AddrFromSlice(b)
	bits, err2 := strconv.Atoi(length)
	if err != nil || err2 != nil || !ok {
		return netip.Prefix{}, bad
	}
	if p, err := addr.Prefix(bits); err == nil && k.address(p) == key {
		return p, nil
	}
	return netip.Prefix{}, bad
}

// unreadable takes the place of an allocation that cannot be read: its address is
// given to nobody.
const unreadable fabric.Identity = "unreadable"

// allocation reads the value of an address's key. After an error it has what keeps the
// address from being given away.
func (k keys) allocation(p netip.Prefix, value []byte) (fabric.Allocation, error) {
	var e entry
	err := json.Unmarshal(value, &e)
	wayOut := "release " + text.Prefix(p) + " when the guest runs that has it, or if none has"
	switch {
	case e.Format > format:
		err = laterVersion(k.address(p), e.Format)
	case err != nil || e.Allocation == nil:
		err = fmt.Errorf("key %s is damaged; %s", k.address(p), wayOut)
	case e.Allocation.Prefix != p:
		err = fmt.Errorf("key %s is of %s by what is in it; %s", k.address(p), e.Allocation.Prefix, wayOut)
	case !slices.Contains([]fabric.AllocationState{fabric.Allocated, fabric.Reserved, fabric.Quarantined}, e.Allocation.State) ||
		e.Allocation.State == fabric.Allocated && e.Allocation.Guest == "":
		err = fmt.Errorf("key %s is damaged (state %q, guest %q); %s", k.address(p), e.Allocation.State, e.Allocation.Guest, wayOut)
	default:
		return *e.Allocation, nil
	}
	return fabric.Allocation{Prefix: p, State: fabric.Allocated, Guest: unreadable, VM: "unreadable", Flaw: err.Error()}, err
}
