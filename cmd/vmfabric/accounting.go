package main

import (
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// accounting is how the node counts the packets of guests, with the file of the totals.
type accounting struct {
	*kernel.Accounting // nil: it does not count
	file               *disk.Value
}

// openAccounting opens the file of the totals, if the cluster file says that the nodes
// count.
func openAccounting(state string, c *fabric.Cluster) (accounting, error) {
	if !c.Accounting {
		return accounting{}, nil
	}
	file, err := disk.OpenValue(state, "accounting", "traffic")
	if err != nil {
		return accounting{}, err
	}
	return accounting{&kernel.Accounting{Internal: c.Internal(), Keep: file}, file}, nil
}

// Close makes the totals safe on the disk.
func (a accounting) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}
