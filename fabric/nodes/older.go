package nodes

import (
	"errors"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// errOlder is the error of a question that an older agent does not understand.
var errOlder = errors.New("its agent is an older one, which cannot say who holds an address; upgrade it")

// older reports whether the agent is of an earlier version. It refuses a notice
// with unknown keys, so it would get no claim before it is upgraded, were it not
// for understood.
func (h hello) older() bool { return h.First == 0 }

// understood returns the parts of a notice that an older agent knows.
func understood(notice fabric.Notice) (fabric.Notice, error) {
	if notice.Kind == fabric.Acquiring {
		return notice, errOlder
	}
	notice.Identity, notice.Acquired = "", time.Time{}
	return notice, nil
}
