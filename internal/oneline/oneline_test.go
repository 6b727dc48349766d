package oneline

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOneLine(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, of, words string }{
		{"", "", ""},
		{"port web_net0: no such device", "port web_net0: no such device", "port web_net0: no such device"},
		{errors.Join(errors.New("first"), errors.New("second")).Error(), "first; second", "first second"},
		{"\r\nfirst\r\n\n  second\tpart\n", "first;   second\tpart", "first second part"},
		{"\n", "", ""},
	} {
		assert.Equal(t, tc.of, Of(tc.text), "%q", tc.text)
		assert.Equal(t, tc.words, Words(tc.text), "%q", tc.text)
	}
}
