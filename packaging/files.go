// Package packaging has the files that a node gets besides the program. Its
// tests hold them, and the examples in the documents, to the code.
package packaging

import _ "embed"

// Settings is the sysctl file of a node, /etc/sysctl.d/90-vmfabric.conf.
//
//go:embed 90-vmfabric.conf
var Settings string
