package attack

import (
	"fmt"
	"slices"
	"strings"
)

// Row is an attack that tests of their own show.
type Row struct {
	Attacker string
	Attack   string
	Promise  string
	Shown    []string // tests: the package's folder and the function
}

// Attackers, in the words of SECURITY.md.
const (
	guest     = "guest"
	stranger  = "stranger of the underlay"
	node      = "node"
	reflector = "reflector"
	user      = "local user"
)

// Rows are the attacks that are not kinds of frames.
var Rows = []Row{
	{guest, "connects to services of the node, the underlay and metadata addresses by its own network stack", "Reaches none but those that the cluster file opens.", []string{"internal/e2e TestGuestsAreKeptFromTheUnderlay", "fabric/kernel TestGuestReach"}},
	{guest, "begins something with a machine of the underlay that asked it something", "Its answers pass, and nothing that it begins.", []string{"fabric/kernel TestGuestAnswers"}},
	{guest, "sends to loopback addresses while `route_localnet` is on and the service is open to guests", "Is not heard.", []string{"fabric/kernel TestLoopback"}},
	{guest, "goes on sending from an address that was taken from it", "Is not heard, also when it just was.", []string{"fabric/kernel TestTakenAddress"}},
	{guest, "hides the ports of a packet from a firewall, its own or another guest's, in a later fragment of it", "Is not let past the firewall's rules.", []string{"fabric/kernel TestFirewallRules"}},
	{guest, "tells the node the path MTU to others", "Is believed only about packets to itself.", []string{"fabric/kernel TestPathMTU"}},
	{guest, "fills the neighbour tables, by ARP, solicitations and echo requests from many sources", "Gets a few entries; others get theirs.", []string{"fabric/kernel TestNeighbourFlood"}},
	{guest, "asks by DHCP without an end", "Gets as many answers as its port may; others get theirs.", []string{"fabric/kernel TestRequestFlood"}},
	{guest, "sends DHCP and router solicitations that are broken, large, or another's", "Gets no answer, or one of bounded size, for itself.", []string{"fabric/autoconf TestBrokenPackets", "fabric/autoconf TestMemoryIsBounded", "fabric/autoconf TestGuestOfAnotherMAC"}},
	{guest, "asks for another guest's metadata, or forwards somebody's question", "Is told its own alone, or nothing.", []string{"fabric/kernel TestMetadata", "internal/metadata TestWhose", "internal/metadata TestRefused"}},
	{guest, "keeps connections to the metadata service open", "Has a few; others get theirs.", []string{"fabric/kernel TestMetadataRoom"}},
	{guest, "has a name, or a hostname by DHCP, with characters for the terminal", "Changes no line that people read.", []string{"cmd/vmfabric TestNamesAreVisible"}},

	{stranger, "talks to an agent without the cluster's key: requests, nonsense, broken and endless lines", "Is hung up on; no node looks ill, and nothing is kept.", []string{"fabric/nodes TestStrangersAreHungUpOn", "fabric/nodes TestNonsense", "fabric/nodes TestNothingIsKept"}},
	{stranger, "opens many connections to an agent, and says little or nothing on them", "Has a bounded number, for a bounded time; nodes get theirs, and the log a line a minute.", []string{"fabric/nodes TestCrowd", "fabric/nodes TestVisitors", "fabric/nodes TestConnections", "fabric/nodes TestSlowCaller", "fabric/nodes TestTally"}},
	{stranger, "calls an agent through a router, or says that it is somebody else", "Does not reach the listener; must be where it says.", []string{"fabric/nodes TestHopLimit", "fabric/nodes TestPosing"}},
	{stranger, "is between two agents, and changes or repeats what they say", "Can stop it, and neither change nor repeat it.", []string{"fabric/nodes TestMiddle"}},
	{stranger, "connects to BGP and metadata ports of nodes, to reflectors, and to etcd without a certificate, with another's and without TLS", "Is not connected, or told nothing.", []string{"internal/e2e TestUnderlayStranger"}},
	{stranger, "repeats to an agent what nodes have said, and says what it makes up in their name", "Is answered by an error and hung up on; nothing changes.", []string{"internal/e2e TestUnderlayStranger"}},
	{stranger, "holds connections to an agent, from many addresses, and says nothing", "Has 64 of the agent's descriptors at most; a node whose agent starts anew gets in, and its guests start.", []string{"internal/e2e TestUnderlayStranger"}},
	{stranger, "says by ARP and neighbor advertisements that a reflector's, or a node's, addresses are its own", "Has what is sent there, and neither a session nor an answer; guests lose nothing by a reflector's, and all is as before once it ends.", []string{"internal/e2e TestStrangerTakesAddresses"}},
	{stranger, "opens a BGP session without the password", "Has no session.", []string{"internal/e2e TestEmbeddedReflectorWantsThePassword", "internal/e2e TestUnderlayStranger"}},
	{stranger, "announces a guest's address by BGP where reflectors ask for no password", "Diverts it, and is named; the node keeps the guest, and its traffic comes back when the other route goes.", []string{"internal/e2e TestRouteOfNobody"}},

	{node, "announces guests with another machine as next hop, by whichever family", "The reflectors drop it.", []string{"internal/render TestRouterSender", "fabric/gobgp/reflector TestSender", "fabric/gobgp/reflector TestSenderLinkLocal", "fabric/gobgp/reflector TestSenderUndeclared"}},
	{node, "announces with a LOCAL_PREF that no agent uses", "The reflectors drop it.", []string{"internal/render TestRouterSender", "fabric/gobgp/reflector TestSender"}},
	{node, "announces prefixes outside the pools, larger or smaller ones, or without the communities", "The reflectors drop them.", []string{"fabric/gobgp/reflector TestPolicy", "internal/e2e TestCompromisedNode"}},
	{node, "announces more prefixes than the limit", "Loses its routes for a pause; others notice nothing.", []string{"internal/e2e TestPrefixLimit", "fabric/gobgp/reflector TestPrefixLimit"}},
	{node, "says by the cluster's key that it has another machine's address", "Is refused, and reported.", []string{"fabric/nodes TestForgedAddresses"}},
	{node, "starts a guest with another guest's addresses", "Does not keep them.", []string{"internal/e2e TestCopyOfAGuest"}},
	{node, "says by the cluster's key that another node's guest is cancelled, released or gone for good, runs or was claimed under an earlier epoch, or one that no clock and no registry gives; that another guest has just got its address; that a guest which was attached by hand runs there", "Is not believed; the guest loses nothing, and the node is named.", []string{"internal/e2e TestCompromisedNode"}},
	{node, "says by the cluster's key that another node's guest runs there now", "Has its packets for some seconds, until the hypervisor of its node has not confirmed it; is named, and not believed again for ten minutes.", []string{"internal/e2e TestCompromisedNode"}},
	{node, "claims another node's guest by the cluster's key, as if it had begun to run there later", "Has it withdrawn, and is named. When the node does not answer any more, the guest is announced where it runs.", []string{"internal/e2e TestCompromisedNode"}},
	{node, "says that a guest has the address with which another is to start", "Has the start refused, and is named.", []string{"internal/e2e TestCompromisedNode"}},
	{node, "asks and answers with what is no line, one of another version, unknown keys, characters for the terminal, or a line without an end", "Is told by an error in one line, and takes 4 MiB at most.", []string{"fabric/nodes TestOthers", "fabric/nodes TestLines", "fabric/nodes TestReader"}},
	{node, "answers a list of its guests without an end, or with characters for the terminal", "Others list theirs, and print none of it.", []string{"internal/e2e TestCompromisedNode"}},

	{reflector, "tells a node that another one has its guest, that another guest has had the address longer, or of wider and default routes, with every preference", "The node asks the other one's agent, goes on announcing, and changes no route; the guest loses nothing.", []string{"internal/e2e TestRogueReflectors", "fabric/agent TestOlderRouteOfANodeThatAnswers"}},
	{reflector, "sends 49 kinds of broken UPDATEs", "Loses its session at most; those with others stay up.", []string{"internal/e2e TestRogueReflectors"}},
	{reflector, "sends a node routes that no node may announce", "The node does not take them over.", []string{"fabric/gobgp TestLearnsOnlyWhatIsAnnounceable"}},
	{reflector, "sends a node better routes to its own guests", "The node goes on announcing them.", []string{"fabric/gobgp TestLearnedAndOwn"}},

	{user, "connects to the sockets of a running agent and its plugin, and reads and writes its state", "May not.", []string{"internal/e2e TestLocalUser"}},
	{user, "connects to the agent's socket", "May not, from the first moment on.", []string{"hooks TestModeFromTheStart", "hooks TestNotRoot"}},
	{user, "reads the agent's state", "May not.", []string{"fabric/disk TestOnlyTheOwnerReads"}},
	{user, "writes the cluster file, a key, a password or a plugin, or a folder above it", "The agent refuses to use it.", []string{"fabric/clusterfile TestWhatOthersCouldWrite", "fabric/clusterfile TestKeyFile", "fabric/clusterfile TestPasswordFile", "plugins TestWhatOthersCouldWrite", "internal/trusted TestCheck", "internal/trusted TestLinks"}},
	{user, "puts links and notes into the demonstration's way", "No process is ended, and nothing is written through them.", []string{"cmd/vmfabric TestDemoDownOfOthers"}},
}

// Table returns the tables of docs/security.md.
func Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| a guest's frame | promised | without the packet filter |\n| --- | --- | --- |\n")
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", k.Name, k.promise(), k.unfiltered())
	}
	fmt.Fprintf(&b, "\n| a guest's flood | without the packet filter |\n| --- | --- |\n")
	for _, f := range Floods {
		unfiltered := "does not fill anything either"
		if f.Fills != "" {
			unfiltered = "fills the " + string(f.Fills)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", f.Name, unfiltered)
	}
	fmt.Fprintf(&b, "\n| a frame of a stranger of the underlay | promised |\n| --- | --- |\n")
	for _, k := range StrangerKinds {
		fmt.Fprintf(&b, "| %s | %s |\n", k.Name, k.promise())
	}
	fmt.Fprintf(&b, "\n| a flood of a stranger of the underlay |\n| --- |\n")
	for _, f := range StrangerFloods {
		fmt.Fprintf(&b, "| %s |\n", f.Name)
	}
	fmt.Fprintf(&b, "\n| attacker | what it does | promised | shown by |\n| --- | --- | --- | --- |\n")
	for _, r := range Rows {
		var tests []string
		for _, t := range r.Shown {
			folder, name, _ := strings.Cut(t, " ")
			tests = append(tests, fmt.Sprintf("`%s` (%s)", name, folder))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Attacker, r.Attack, r.Promise, strings.Join(tests, ", "))
	}
	return b.String()
}

// promise says what the kind's frames do not do.
func (k Kind) promise() string {
	var words []string
	if k.Never != 0 {
		words = append(words, "does not reach "+k.Never.String())
	}
	if k.Keeps {
		words = append(words, "changes no neighbour, address, route or path MTU")
	}
	return strings.Join(words, "; ")
}

// unfiltered says what becomes of the kind's frames without the packet filter.
func (k Kind) unfiltered() string {
	var alone []string
	count := 0
	for _, f := range Families {
		if !k.Has(f) {
			continue
		}
		count++
		if slices.Contains(k.Alone, f) {
			alone = append(alone, f.String())
		}
	}
	switch len(alone) {
	case 0:
		return "does"
	case count:
		return "does not either"
	}
	return fmt.Sprintf("does, but not by %s", alone[0])
}
