// Package signal has wake-ups that carry nothing: whoever receives one looks for
// itself what there is to do.
package signal

// Signal is a channel on which one wake-up can lie. A receiver that was busy
// finds it, and finds one only, however many were sent meanwhile.
type Signal chan struct{}

// New makes a signal on which no wake-up lies.
func New() Signal { return make(Signal, 1) }

// Send leaves a wake-up unless one lies there. It does not block, and is safe
// for concurrent use.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
