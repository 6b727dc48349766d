package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestAwaitWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		after := func(d time.Duration) func(context.Context) (fabric.Status, error) {
			return func(context.Context) (fabric.Status, error) {
				if time.Since(began) < d/2 {
					return fabric.Status{}, errors.New("no answer")
				}
				return fabric.Status{Healthy: time.Since(began) >= d}, nil
			}
		}
		awaitWell(t.Context(), after(0))
		assert.Zero(t, time.Since(began))
		awaitWell(t.Context(), after(2*time.Second))
		assert.Equal(t, 2*time.Second, time.Since(began))
		began = time.Now()
		awaitWell(t.Context(), after(time.Hour))
		assert.Equal(t, wellIn, time.Since(began), "no longer than that")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		awaitWell(ctx, after(time.Hour))
		assert.Zero(t, time.Since(began))
	})
}
