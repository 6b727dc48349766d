// Package rtnl speaks rtnetlink(7): it sends requests, several at once, and
// receives the notifications of changes. It uses the socket directly. The kernel
// has answered a request by the time that the call that sends it returns, so that
// nothing waits in Go's poller. A buffer that holds any answer saves a system call
// that asks for its size.
package rtnl
