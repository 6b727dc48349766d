package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAlarmRingsAtEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		rings := make(chan time.Duration, 16)
		a := &alarm{do: func() { rings <- time.Since(began) }}
		for _, d := range []time.Duration{3 * time.Second, time.Second, 2 * time.Second, time.Second} {
			a.after(d)
		}
		time.Sleep(1500 * time.Millisecond)
		a.after(time.Second)
		time.Sleep(time.Minute)
		for _, d := range []time.Duration{time.Second, 2 * time.Second, 2500 * time.Millisecond, 3 * time.Second} {
			assert.Equal(t, d, <-rings)
		}

		a.after(time.Second)
		a.stop()
		a.after(time.Second)
		time.Sleep(time.Minute)
		assert.Empty(t, rings)
	})
}
