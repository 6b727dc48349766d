package nodes

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// key is the cluster's secret, nil where it has none.
type key []byte

// The directions of a line, as its MAC has them.
const (
	question = "question"
	response = "response"
)

// keyOf derives the key from the reflectors' passwords, which every node has.
func keyOf(c *fabric.Cluster) key {
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
		return nil
	}
	return h.Sum(nil)
}

// mac gives the MAC of the n-th line in a direction of the connection that
// nonce stands for; to is the MAC of the question that it answers.
func (k key) mac(nonce, direction string, n uint64, to, body []byte) []byte {
	if k == nil {
		return nil
	}
	h := hmac.New(sha256.New, k)
	fmt.Fprintf(h, "%q %s %d %x ", nonce, direction, n, to)
	h.Write(body)
	return h.Sum(nil)
}

// otherPasswords is what to say of a line with another MAC.
const otherPasswords = "the passwords for the reflectors are not the same on both nodes; " + samePasswords

const samePasswords = "give all nodes the same cluster file and password files, and restart their agents"
