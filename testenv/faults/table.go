package faults

import (
	"fmt"
	"strings"
)

// Row is a fault.
type Row struct {
	Name    string // in the file of figures
	Fault   string
	Promise string
	Most    int      // packets of a guest and family that may be lost in it; negative: as many as the fault lasts
	Shown   []string // tests: the package's folder and the function; the first one measures it
}

// Rows are the faults.
var Rows = []Row{
	{
		Name: "stopped shortly", Fault: "an agent stands still (SIGSTOP) for 5 s, less than the hold time",
		Promise: "Nothing is lost.",
		Shown:   []string{"internal/e2e TestFaultsOfTheAgent"},
	},
	{
		Name: "stopped for long", Fault: "an agent stands still for a minute, and nobody ends it",
		Promise: "The reflectors take its node for dead after the hold time (9 s); its guests are back a moment after it goes on.", Most: -1,
		Shown: []string{"internal/e2e TestStoppedForLong"},
	},
	{
		Name: "stopped, with the watchdog", Fault: "an agent stands still until systemd's watchdog ends it, after 5 s",
		Promise: "Nothing is lost: the reflectors keep what it announced, and the next agent takes over what it finds.",
		Shown:   []string{"internal/e2e TestFaultsOfTheAgent", "internal/e2e TestSystemdIsTold"},
	},
	{
		Name: "upgraded", Fault: "the program is replaced on all nodes, and the agents are restarted",
		Promise: "Nothing is lost.",
		Shown:   []string{"internal/e2e TestFaultsOfTheAgent", "internal/e2e TestRestartsLoseNothing"},
	},
	{
		Name: "clock jumps", Fault: "the agent's clock jumps by an hour ahead, two back, one ahead",
		Promise: "Nothing is lost, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfTheAgent", "fabric/agent TestClockThatWasSetBack", "internal/simulate TestSimulate"},
	},
	{
		Name: "disk full", Fault: "the state's file system is full, while the agent runs and when it starts again after it was killed",
		Promise: "Nothing is lost. Guests that start are refused, with the way out, before anything is made; `status` tells it before. All is well as soon as there is room.",
		Shown:   []string{"internal/e2e TestFaultsOfTheDisk", "fabric/disk TestFullAndReadOnlyDisk"},
	},
	{
		Name: "disk read-only", Fault: "the state's file system is read-only, likewise",
		Promise: "Likewise. A guest attached by hand that is detached meanwhile is withdrawn, and back after a restart of the agent until it can be forgotten.",
		Shown:   []string{"internal/e2e TestFaultsOfTheDisk", "fabric/disk TestFullAndReadOnlyDisk"},
	},
	{
		Name: "state damaged", Fault: "every file of the state is garbage, cut, or empty, likewise",
		Promise: "Nothing is lost or removed, and guests come and go; each file is told, with the way out.",
		Shown:   []string{"internal/e2e TestFaultsOfTheDisk", "internal/e2e TestDamagedState", "fabric/disk TestDamagedMarker", "fabric/disk TestEveryFlippedBitIsSeen"},
	},
	{
		Name: "state lost", Fault: "the state directory is removed, likewise",
		Promise: "Nothing is lost; `status` tells it. Guests that start are refused until the agent is restarted, which takes over the ports that are there.",
		Shown:   []string{"internal/e2e TestFaultsOfTheDisk", "fabric/disk TestDirectoryThatIsGone", "fabric/agent TestStateThatIsGoneRemovesNothing"},
	},
	{
		Name: "loss and delay", Fault: "reflectors lose 5 % of what they send and are sent, and all of it takes 200 ms, for a minute",
		Promise: "Nothing is lost, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePaths"},
	},
	{
		Name: "large packets are lost", Fault: "packets of more than 1,300 bytes to and from a node vanish, while 20 guests come to it and a reflector is restarted",
		Promise: "Nothing is lost, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePaths"},
	},
	{
		Name: "node and node are cut", Fault: "two nodes do not reach each other for a minute",
		Promise: "Nothing is lost, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePaths", "internal/simulate TestSimulate"},
	},
	{
		Name: "node and registry are cut", Fault: "a node does not reach the registry for a minute",
		Promise: "Nothing is lost, and guests that say what they have come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePaths", "internal/histories TestHistories", "internal/simulate TestSimulate"},
	},
	{
		Name: "node and a reflector are cut", Fault: "a node does not reach one of two reflectors for a minute",
		Promise: "Nothing is lost, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePaths", "internal/e2e TestMainAndBackup"},
	},
	{
		Name: "node and reflectors are cut", Fault: "a node does not reach any reflector for a minute",
		Promise: "The reflectors take it for dead after the hold time (9 s); its guests are back a moment after it is.", Most: -1,
		Shown: []string{"internal/e2e TestFaultsOfThePaths", "internal/e2e TestDeadNode"},
	},
	{
		Name: "netlink overrun", Fault: "1,000 links with addresses and routes come and go in a burst, the agent's socket has room for one notification or two, and a port is changed meanwhile",
		Promise: "Nothing is lost; the port is repaired, and guests come and go.",
		Shown:   []string{"internal/e2e TestFaultsOfTheCrowd", "fabric/kernel/internal/rtnl TestLostNotifications"},
	},
	{
		Name: "many guests at once", Fault: "1,000 guests start and end, hooks of 200 at a time",
		Promise: "Nothing is lost; the core gateway gets every guest's routes, and nothing is left of them.",
		Shown:   []string{"internal/e2e TestFaultsOfTheCrowd", "internal/e2e TestBootStorm"},
	},
	{
		Name: "many cycles", Fault: "3,000 guests come and go, four at a time",
		Promise: "Nothing is lost; the agent's memory, files and threads stay as they are.",
		Shown:   []string{"internal/e2e TestFaultsOfTheCrowd"},
	},
	{
		Name: "libvirtd is killed", Fault: "libvirtd is killed twice while six domains start",
		Promise: "Nothing is lost; the fabric has the domains that run, and nothing of the others, which start later.",
		Shown:   []string{"internal/e2e TestFaultsOfTheHypervisors", "internal/e2e TestAgentAndLibvirtComeAndGo", "internal/e2e TestHangingLibvirt"},
	},
	{
		Name: "LXD is killed", Fault: "LXD is killed twice while six instances start",
		Promise: "Likewise, at the latest with the next list of what runs, a minute later (so it was in another run).",
		Shown:   []string{"internal/e2e TestFaultsOfTheHypervisors", "internal/e2e TestLXDAndAgentComeAndGo"},
	},
	{
		Name: "power is lost", Fault: "an agent is killed 30 times while guests come and go, and its state is as it was at a random moment before",
		Promise: "Nothing is lost; no file is damaged, and nothing is left of guests that go.",
		Shown:   []string{"internal/e2e TestFaultsOfThePower", "fabric/disk TestPowerCutTakesTheLastChangeOnly", "fabric/disk TestKilledWriterLosesNothing", "internal/simulate TestSimulate"},
	},
}

// Named returns the row of a fault; nil if there is none.
func Named(name string) *Row {
	for i := range Rows {
		if Rows[i].Name == name {
			return &Rows[i]
		}
	}
	return nil
}

// Table returns the table of docs/reliability.md.
func Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| fault | promised | measured | how to run it | shown by, too |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range Rows {
		_, measures, _ := strings.Cut(r.Shown[0], " ")
		var more []string
		for _, t := range r.Shown[1:] {
			folder, name, _ := strings.Cut(t, " ")
			more = append(more, fmt.Sprintf("`%s` (%s)", name, folder))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `make faults FAULT=%s` | %s |\n", r.Fault, r.Promise, r.Measured(), measures, strings.Join(more, ", "))
	}
	return b.String()
}
