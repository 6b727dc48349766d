// Command program is a plugin for tests that start a program of its own, see package
// testplugin.
package main

import "github.com/vmfabric/vmfabric/plugins/internal/testplugin"

func main() { testplugin.Main() }
