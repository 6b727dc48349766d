package signal

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestWakeUpsCoalesce(t *testing.T) {
	t.Parallel()
	s := New()
	assert.Empty(t, s)
	for range 2 {
		var sending sync.WaitGroup
		for range 8 {
			sending.Go(s.Send)
		}
		sending.Wait()
		<-s
		assert.Empty(t, s, "one for all of them")
	}
}
