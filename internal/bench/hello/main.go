// Command hello is the least process that a hook in Go can be: it reads its
// standard input and writes hello. The benchmark compares the shipped hook with it.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	if _, err := io.ReadAll(os.Stdin); err != nil {
		os.Exit(1)
	}
	fmt.Println("hello, world")
}
