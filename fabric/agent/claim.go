package agent

import (
	"strconv"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/ownership"
)

// claimOfNotice gives the claim in a notice of a node.
func claimOfNotice(n fabric.Notice, node string) ownership.Claim {
	return ownership.Claim{Identity: string(n.Identity), Acquired: n.Acquired, Epoch: n.Epoch, Node: node}
}

// claimOfAnswer gives the claim in an answer of a node.
func claimOfAnswer(answer fabric.Answer, node string) ownership.Claim {
	return ownership.Claim{Identity: string(answer.Identity), Acquired: answer.Acquired, Epoch: answer.Epoch, Node: node}
}

// claimOf gives this node's own claim to a guest.
func claimOf(d fabric.Desired, node string) ownership.Claim {
	return ownership.Claim{
		Identity: string(d.VM.Identity()), Acquired: d.Acquired, Epoch: d.Epoch, Node: node, Manual: d.VM.Origin == "",
	}
}

// naming adds the guest to an answer, if the sender of the notice is new enough to
// understand that.
func naming(answer fabric.Answer, n fabric.Notice, d fabric.Desired) fabric.Answer {
	if n.Identity != "" {
		answer.VM, answer.Identity, answer.Acquired = d.VM.Name, d.VM.Identity(), d.Acquired
	}
	return answer
}

// claimOfRoute gives the claim in a route of a node.
func claimOfRoute(h fabric.Holder, node string) ownership.Claim {
	c := ownership.Claim{Node: node}
	if h == (fabric.Holder{}) {
		return c
	}
	c.Identity = strconv.FormatUint(uint64(h.Guest), 16)
	if h.Since > 0 {
		c.Acquired = time.Unix(int64(h.Since), 0)
	}
	return c
}
