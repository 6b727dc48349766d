package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadTold(t *testing.T) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	events, err := readTold("web", `{"at":"2026-11-30T12:00:00Z","text":"is told"}`+"\n"+`{"at":"2026-11-30T12:00:01Z","text":"is told more"}`+"\n")
	require.NoError(t, err)
	assert.Equal(t, []event{{at, "web      is told"}, {at.Add(time.Second), "web      is told more"}}, events)
	events, err = readTold("web", "")
	require.NoError(t, err)
	assert.Empty(t, events)
	_, err = readTold("web", "panic: boom")
	require.ErrorContains(t, err, "web: ")
}
