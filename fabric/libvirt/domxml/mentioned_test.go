package domxml

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Wherever the first part of the XML ends, and in whatever pieces the rest comes.
func TestMentioned(t *testing.T) {
	xml := strings.Repeat("x", 100) + Namespace + strings.Repeat("y", 100)
	for end := range len(xml) {
		found, err := Mentioned([]byte(xml[:end]), iotest.OneByteReader(strings.NewReader(xml[end:])))
		require.NoError(t, err)
		// All of it in what was read is not looked for again.
		assert.Equal(t, end < 100+len(family), found, end)
	}
	found, err := Mentioned(nil, strings.NewReader(strings.ReplaceAll(xml, "urn:", "url:")))
	require.NoError(t, err)
	assert.False(t, found)
	found, err = Mentioned(nil, iotest.DataErrReader(strings.NewReader(xml)))
	require.NoError(t, err)
	assert.True(t, found)
	_, err = Mentioned([]byte("x"), iotest.ErrReader(errors.New("cut")))
	assert.EqualError(t, err, "cut")
}
