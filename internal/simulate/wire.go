package simulate

import (
	"context"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// wire is an agent's connection to the others, with delays, until the agent is
// killed.
type wire struct {
	*fake.Nodes
	*mortal
	delay time.Duration
}

func (w wire) Ask(ctx context.Context, to string, n fabric.Notice) (fabric.Answer, error) {
	if err := w.err(); err != nil {
		return fabric.Answer{}, err
	}
	time.Sleep(w.delay)
	if w.node.isGarbled() || w.node.world.node(to).isGarbled() {
		return w.garble(ctx, to, n)
	}
	answer, err := w.Nodes.Ask(ctx, to, n)
	time.Sleep(w.delay)
	return answer, err
}

// The longest delay of a message, and the time after which the caller gives up.
const (
	lateBy = 400 * time.Millisecond
	giveUp = time.Second
)

// garble is Ask over a bad network: the question or the answer may come late, the
// question may come twice, or the caller may give up before it comes.
func (w wire) garble(ctx context.Context, to string, n fabric.Notice) (fabric.Answer, error) {
	w.mortal.mu.Lock()
	how, there, back, again := w.rnd.IntN(6), between(w.rnd, 0, lateBy), between(w.rnd, 0, lateBy), between(w.rnd, 0, 3*time.Second)
	w.mortal.mu.Unlock()
	late := func() {
		time.Sleep(again)
		_, _ = w.Nodes.Ask(context.Background(), to, n)
	}
	switch how {
	case 0: // it comes when the caller has given up
		go late()
		if !backoff.Sleep(ctx, giveUp) {
			return fabric.Answer{}, ctx.Err()
		}
		return fabric.Answer{}, context.DeadlineExceeded
	case 1: // it comes twice
		go late()
	}
	if !backoff.Sleep(ctx, there) {
		return fabric.Answer{}, ctx.Err()
	}
	answer, err := w.Nodes.Ask(ctx, to, n)
	if !backoff.Sleep(ctx, back) && err == nil {
		return fabric.Answer{}, ctx.Err()
	}
	return answer, err
}
