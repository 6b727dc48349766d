package clusterfile

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPanicOfTheParserIsAnError(t *testing.T) {
	_, err := guard(func() (*ast.File, error) {
		return parser.Parse(token.Tokens{{Type: token.SequenceEntryType}}, 0) // a token that stands nowhere
	})
	require.ErrorContains(t, err, "panic: ")
	bad := syntaxError(err)
	bad.File = "cluster.yaml"
	assert.EqualError(t, bad, "cluster.yaml: not YAML; check the indentation, which is in spaces, and the brackets, and quote values with signs such as ':'")
}

func TestNearest(t *testing.T) {
	keys := []key{{name: "name"}, {name: "address"}, {name: "address6"}, {name: "asn"}, {name: "bfd"}, {name: "password_file"}, {name: "connect_retry"}}
	for _, tt := range []struct{ written, want string }{
		{"adress", "address"},
		{"addr", "address"},
		{"address4", "address"},
		{"Address6", "address6"},
		{"nmae", "name"},
		{"ans", "asn"},
		{"dfb", ""},
		{"as", "asn"},
		{"mtu", ""},
		{"password", "password_file"},
		{"passwordfile", "password_file"},
		{"connect-retry", "connect_retry"},
		{"", ""},
		{"\xff", ""},
		{strings.Repeat("address", 10), ""},
	} {
		assert.Equal(t, tt.want, nearest(tt.written, keys), tt.written)
	}
}
