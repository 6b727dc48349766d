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
	{"stopped shortly", "an agent stands still (SIGSTOP) for 5 s, less than the hold time", "Nothing is lost.", 0, []string{"internal/e2e TestFaultsOfTheAgent"}},
	{"stopped for long", "an agent stands still for a minute, and nobody ends it", "The reflectors take its node for dead after the hold time (9 s); its guests are back a moment after it goes on.", -1, []string{"internal/e2e TestStoppedForLong"}},
	{"stopped, with the watchdog", "an agent stands still until systemd's watchdog ends it, after 30 s", "Likewise; the next agent takes over what it finds.", -1, []string{"internal/e2e TestStoppedForLong"}},
	{"upgraded", "the program is replaced on all nodes, and the agents are restarted", "Nothing is lost.", 0, []string{"internal/e2e TestFaultsOfTheAgent"}},
	{"disk full", "the state's file system is full, before and after the agent is killed", "Nothing is lost, and guests come and go; what is not written is told, and written as soon as there is room.", 0, []string{"internal/e2e TestFaultsOfTheDisk", "fabric/disk TestFullAndReadOnlyDisk"}},
	{"disk read-only", "the state's file system is read-only, likewise", "Likewise.", 0, []string{"internal/e2e TestFaultsOfTheDisk", "fabric/disk TestFullAndReadOnlyDisk"}},
	{"state damaged", "every file of the state is garbage, cut, or empty, likewise", "Nothing is lost or removed, and guests come and go; each file is told, with the way out.", 0, []string{"internal/e2e TestFaultsOfTheDisk", "internal/e2e TestDamagedState", "fabric/disk TestEveryFlippedBitIsSeen"}},
	{"state lost", "the state directory is removed, likewise", "Nothing is lost, and guests come and go; the ports that are there are taken over.", 0, []string{"internal/e2e TestFaultsOfTheDisk", "fabric/agent TestStateThatIsGoneRemovesNothing"}},
	{"clock jumps", "the agent's clock jumps by an hour ahead, two back, one ahead", "Nothing is lost, and guests come and go.", 0, []string{"internal/e2e TestFaultsOfTheAgent", "fabric/agent TestClockThatWasSetBack", "internal/simulate TestSimulate"}},
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
	fmt.Fprintf(&b, "| fault | promised | measured | shown by |\n| --- | --- | --- | --- |\n")
	for _, r := range Rows {
		var tests []string
		for _, t := range r.Shown {
			folder, name, _ := strings.Cut(t, " ")
			tests = append(tests, fmt.Sprintf("`%s` (%s)", name, folder))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Fault, r.Promise, found(r.Name), strings.Join(tests, ", "))
	}
	return b.String()
}
