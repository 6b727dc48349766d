package kernel

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tablesSeen says that this kernel has nf_tables, which stay while there is a table.
var tablesSeen atomic.Bool

// openTables opens a connection to nf_tables, if the kernel has it. A kernel that has not
// answers a transaction by a single message, and the library would wait for more for ever.
func openTables(options ...nftables.ConnOption) (*nftables.Conn, error) {
	if !tablesSeen.Load() {
		if _, err := rulesGeneration(); err != nil {
			return nil, err
		}
		tablesSeen.Store(true)
	}
	return nftables.New(options...)
}

// noTables are the answers of a kernel that has no nf_tables, or not the part that it is
// asked for.
var noTables = []unix.Errno{unix.EOPNOTSUPP, unix.ENOENT, unix.EINVAL, unix.EPROTONOSUPPORT}

// roomForAnswers makes room in a socket for the kernel's answers to one transaction.
// There are two to each rule, all at once, and they fill what a socket has room for by
// default.
func roomForAnswers(c *netlink.Conn) error { return c.SetReadBuffer(answerBuffer) }

// rulesGeneration returns the generation of the kernel's ruleset, which grows with
// each change of any table (NFT_MSG_GETGEN).
func rulesGeneration() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, sizeofNfgenmsg),
	})
	if err != nil {
		return 0, err
	}
	for _, reply := range replies {
		if len(reply.Data) < sizeofNfgenmsg {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(reply.Data[sizeofNfgenmsg:])
		if err != nil {
			continue
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, nil
}
