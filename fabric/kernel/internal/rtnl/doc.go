// Package rtnl speaks rtnetlink(7): requests, of which several go out at once,
// and the notifications of what changes. It uses the socket directly. A request
// is answered by the time that it is sent, so that nothing has to wait in Go's
// poller, and a buffer that holds any answer saves the look at its size before.
package rtnl
