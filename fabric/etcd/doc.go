// Package etcd keeps which guest has which address in etcd, for all nodes of a
// cluster: a [fabric.Registry] that they share.
//
// The keys, below prefix and name of the cluster (/vmfabric/msk1/):
//
//	addr/cb00710a/32                        an address or a prefix, in hexadecimal: its allocation
//	addr/20010db8010000000000000000000009/128
//	guest/libvirt%20<uuid>                  written with each change of what a guest has
//	prefixes                                written with each new prefix of several addresses
//	meta/incarnation                        which registry this is
//	meta/restored                           a node saw that it was restored or replaced
//	meta/recording                          it was adopted a moment ago
//	node/<name>/last                        put by each write of the node
//
// A node decides by a copy of them that a watch keeps up to date, and writes with one
// transaction, which compares the revision of every key that the decision depends on.
// So the copy may be late without harm: then the transaction fails, and the node
// decides again. The key of the guest is why two nodes that ask for one guest at the
// same time get one answer; the key of the prefixes is why nobody gets an address of
// a prefix that is being reserved.
//
// A quarantine is the lease of its key: etcd ends it, and no node's clock can do so too
// early.
//
// An etcd that was restored from a backup has given fewer addresses than guests have. A
// node recognises it by what it remembers ([Memory]): etcd's id, the incarnation, the
// highest revision, and the revision of its own last write. Whoever recognises it
// leaves a mark, and each transaction that writes compares that there is none, that the
// incarnation is the one that the node knows, and that the node's last write is there.
// [Registry.Adopt] begins the next incarnation.
package etcd
