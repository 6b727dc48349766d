package nodes

import (
	"errors"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// errOlder is the error of a question that an older agent does not understand.
var errOlder = errors.New("its agent is an older one, which cannot say who holds an address; upgrade it")

// older reports whether an agent is of before this version: it reads no key of a
// line that it does not know, and would hear of no claim before it is upgraded.
func (h hello) older() bool { return h.First == 0 }

// understood gives what an older agent understands of a notice.
func understood(notice fabric.Notice) (fabric.Notice, error) {
	if notice.Kind == fabric.Acquiring {
		return notice, errOlder
	}
	notice.Identity, notice.Acquired = "", time.Time{}
	return notice, nil
}
