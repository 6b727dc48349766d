package nodes

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// key makes the MACs; nil if the cluster has none.
type key []byte

// The directions of a line, as its MAC has them.
const (
	question = "question"
	response = "response"
)

// The sources of a cluster's key, as a [hello] names them.
const (
	fromFile      = "key_file"
	fromPasswords = "passwords"
)

// keyOf makes the key of a cluster from its key file or, without one, from the
// reflectors' passwords, which every node has. It also returns which of the two it
// used.
func keyOf(c *fabric.Cluster) (key, string) {
	if c.Key != "" {
		h := hmac.New(sha256.New, []byte(c.Key))
		fmt.Fprintf(h, "vmfabric agents, key file, %q", c.Name)
		return h.Sum(nil), fromFile
	}
	h := hmac.New(sha256.New, []byte("vmfabric agents"))
	fmt.Fprintf(h, "%q", c.Name)
	has := false
	for _, r := range slices.SortedFunc(slices.Values(c.Reflectors), func(a, b fabric.RR) int { return cmp.Compare(a.Name, b.Name) }) {
		if r.Password != "" {
			has = true
			fmt.Fprintf(h, " %q %q", r.Name, r.Password)
		}
	}
	if !has {
		return nil, ""
	}
	return h.Sum(nil), fromPasswords
}

// mac returns the MAC of the n-th line in a direction of the connection with a
// nonce; to is the MAC of the question that the line answers.
func (k key) mac(nonce, direction string, n uint64, to, body []byte) []byte {
	if k == nil {
		return nil
	}
	h := hmac.New(sha256.New, k)
	fmt.Fprintf(h, "%q %s %d %x ", nonce, direction, n, to)
	h.Write(body)
	return h.Sum(nil)
}

const (
	samePasswords = "give all nodes the same cluster file and password files, and restart their agents"
	sameKey       = "give all nodes the same cluster file and key file, and restart their agents"
)

// otherKey is the error of a line with another MAC.
func (n *Nodes) otherKey() error {
	if n.keyFrom == fromPasswords {
		return disagree("the passwords for the reflectors are not the same on both nodes; %s", samePasswords)
	}
	return disagree("the cluster's keys are not the same on both nodes; %s", sameKey)
}

// sameKind compares the source of the other node's key with that of this one's.
func (n *Nodes) sameKind(h hello) error {
	theirs := h.KeyFrom
	if h.Keyed && theirs == "" { // an older agent, which has no key files
		theirs = fromPasswords
	}
	switch {
	case theirs == n.keyFrom:
		return nil
	case n.keyFrom == "" && theirs == fromPasswords:
		return disagree("it has passwords for the reflectors, this node none; %s", samePasswords)
	case n.keyFrom == fromPasswords && theirs == "":
		return disagree("it has no passwords for the reflectors, this node has; %s", samePasswords)
	case n.keyFrom == fromFile:
		return disagree("this node has a key_file in its cluster file, and it has none, or an agent that is too old for one; %s", sameKey)
	}
	return disagree("it has a key_file in its cluster file, this node none; %s", sameKey)
}
