package oneline

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOfJSON(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                 "it is a list, where an object belongs",
		`"x"`:                "it is a text, where an object belongs",
		`7`:                  "it is a number, where an object belongs",
		`{"v":"1"}`:          `"v" is a text, where a whole number belongs`,
		`{"v":1.5}`:          `"v" is the number 1.5, where a whole number belongs`,
		`{"vm":[]}`:          `"vm" is a list, where an object belongs`,
		`{"vm":{"names":1}}`: `"vm.names" is a number, where a list belongs`,
		`{"good":{}}`:        `"good" is an object, where true or false belongs`,
		`{`:                  "unexpected end of JSON input",
	} {
		var v struct {
			V    int   `json:"v"`
			Good *bool `json:"good"`
			VM   struct {
				Names []string `json:"names"`
			} `json:"vm"`
		}
		err := json.Unmarshal([]byte(text), &v)
		require.Error(t, err, text)
		assert.Equal(t, want, OfJSON(err), text)
	}
	assert.Equal(t, "no", OfJSON(errors.New("no")))
}
