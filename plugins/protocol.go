package plugins

import (
	"fmt"

	goplugin "github.com/hashicorp/go-plugin"
)

// ProtocolVersion is the version of plugin.proto that this package speaks. An
// agent and a plugin that speak different versions refuse each other.
const ProtocolVersion = 1

// handshake lets agent and plugin recognise each other. The cookie is no secret: it
// tells a plugin that an agent started it.
var handshake = goplugin.HandshakeConfig{
	ProtocolVersion:  ProtocolVersion,
	MagicCookieKey:   "VMFABRIC_PLUGIN",
	MagicCookieValue: "5d0f7f3a-1c55-4b6e-9a53-2f8d2a4f6b10",
}

// kind is a kind of plugin, by its name in plugin.proto.
type kind string

const (
	speaker  kind = "speaker"
	resolver kind = "resolver"
	observer kind = "observer"
)

// setting is the line of the cluster file that makes path a plugin of the kind.
func (k kind) setting(path string) string {
	if k == observer {
		return fmt.Sprintf("'observers: [%s]'", path)
	}
	return fmt.Sprintf("'%s: %s'", k, path)
}
