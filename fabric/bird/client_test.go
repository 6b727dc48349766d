package bird

import (
	"bufio"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestReply(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, in string
		want     []string
		err      string
	}{
		{"greeting", "0001 BIRD 2.0.12 ready.\n", []string{"BIRD 2.0.12 ready."}, ""},
		{"several lines", "1007-Table master4:\n more\n1008-\tType: BGP\n0000 \n", []string{"Table master4:", "more", "\tType: BGP"}, ""},
		{"asynchronous", "+core: up\n0013 Daemon is up\n", []string{"Daemon is up"}, ""},
		{"refused", "9001 syntax error, unexpected CF_SYM_UNDEFINED\n", nil, "syntax error, unexpected CF_SYM_UNDEFINED"},
		{"cut short", "1007-Table master4:\n", []string{"Table master4:"}, "EOF"},
		{"not BIRD", "HTTP\n", nil, `answer "HTTP" is not of BIRD's control protocol`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := readReply(bufio.NewReader(strings.NewReader(tc.in)))
			assert.Equal(t, tc.want, got)
			if tc.err == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, tc.err)
			}
		})
	}
}
