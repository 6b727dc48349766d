// Package capture listens to and records the frames that pass a port, by packet(7)
// sockets: the first frame of a guest, and the last frames to it, which it may not
// have taken. It sends these again, and asks guests for their addresses. Package
// kernel decides at which port and when.
package capture
