package plural

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOf(t *testing.T) {
	assert.Equal(t, "0 ports are", Of(0, "port is", "ports are"))
	assert.Equal(t, "1 port is", Of(1, "port is", "ports are"))
	assert.Equal(t, "2 ports are", Of(uint64(2), "port is", "ports are"))
}
