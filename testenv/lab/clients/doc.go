// Package clients puts guests into a lab of testenv/lab/core that configure themselves:
// a [Guest] has an unmodified root file system of a distribution ([Root]), and in it
// runs a [Client] of DHCP and router advertisements. What the client and its node say
// to each other can be read from frames ([Read]).
//
// Between the guest's NIC and the port of the node is a cable, a host of its own, in the
// place of a hypervisor: a guest that moves keeps its NIC, and its link does not blink.
package clients
