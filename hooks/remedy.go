package hooks

import "github.com/vmfabric/vmfabric/fabric"

// Remedy returns the way out of a problem in the commands and files of a node, for
// [github.com/vmfabric/vmfabric/fabric/agent.WithRemedies]; empty: none is known.
func Remedy(r fabric.Reason) string {
	return map[fabric.Reason]string{
		fabric.NodeDrained:    "start the guest on another node, or end the drain: vmfabric undrain",
		fabric.DrainUnderWay:  "vmfabric undrain ends it",
		fabric.DrainUnknown:   "vmfabric drain, or vmfabric undrain, says so anew",
		fabric.GuestUnknown:   "see virsh list --all, lxc list, incus list",
		fabric.PoolFull:       "vmfabric address list shows who has them",
		fabric.AddressHeld:    "vmfabric address show ADDRESS says more, vmfabric address release ADDRESS ends what nobody needs",
		fabric.AddressesWait:  "vmfabric address release VM does that",
		fabric.RegistryNone:   "write the address into the XML, the instance's keys, or behind --address",
		fabric.RegistrySilent: "vmfabric status says more; guests that have their addresses run on and can start",
		fabric.RegistryFailed: "vmfabric status says more; guests that have their addresses run on and can start",
		fabric.ResolverNone:   "name one in the cluster file (resolver:), or write its addresses into the XML, or the instance's keys",
		fabric.ResolverSilent: "see whether it and its inventory are up, or write the addresses into the XML",
		fabric.ResolverFailed: "correct its inventory, or write them into the XML",
	}[r]
}
