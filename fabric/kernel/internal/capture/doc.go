// Package capture listens to and records what passes a port, by packet(7) sockets:
// the first frame of a guest, and the last that it may not have taken. It sends
// frames again, and asks guests for their addresses. Which port is listened to, and
// when, others decide.
package capture
