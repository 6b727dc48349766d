// Package version words the version of a program for people.
package version

import (
	"fmt"
	"runtime"
)

// Line is what a program prints that is asked for its version.
func Line(program, version string) string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", program, version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Asked reports whether the arguments of a program, with its name, ask for its version and
// nothing else.
func Asked(args []string) bool {
	return len(args) == 2 && (args[1] == "--version" || args[1] == "version")
}
