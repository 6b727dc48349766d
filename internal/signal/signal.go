// Package signal has wake-ups that carry nothing: the receiver finds out itself
// what there is to do.
package signal

// Signal is a channel that holds one wake-up. A receiver that was busy finds it
// there, and finds only one, however many were sent meanwhile.
type Signal chan struct{}

// New makes a signal without a wake-up.
func New() Signal { return make(Signal, 1) }

// Send sends a wake-up unless one is there. It does not block, and is safe for
// concurrent use.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
