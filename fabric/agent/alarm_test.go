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
		var rang []time.Duration
		a := &alarm{do: func() { rang = append(rang, time.Since(began)) }}
		for _, d := range []time.Duration{3 * time.Second, time.Second, 2 * time.Second, time.Second} {
			a.after(d)
		}
		time.Sleep(1500 * time.Millisecond)
		a.after(time.Second)
		time.Sleep(time.Minute)
		assert.Equal(t, []time.Duration{time.Second, 2 * time.Second, 2500 * time.Millisecond, 3 * time.Second}, rang)

		a.after(time.Second)
		a.stop()
		a.after(time.Second)
		time.Sleep(time.Minute)
		assert.Len(t, rang, 4)
	})
}
