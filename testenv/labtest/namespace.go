package labtest

import (
	"errors"
	"runtime"

	"github.com/vishvananda/netns"
)

// InNamespace runs f on a thread of its own in a network namespace, which it makes if
// there is none yet.
func InNamespace(namespace *netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		if *namespace == 0 {
			if *namespace, err = netns.New(); err != nil {
				return
			}
		}
		if err = netns.Set(*namespace); err == nil {
			err = f()
		}
	}()
	return <-done
}
