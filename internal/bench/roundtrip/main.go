// Command roundtrip is the least hook: it reads its standard input, sends a fixed
// line over the socket VMFABRIC_SOCKET and waits for the answer. The benchmark
// compares the shipped hook with it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "roundtrip:", err)
		os.Exit(1)
	}
}

func run() error {
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	conn, err := net.Dial("unix", os.Getenv("VMFABRIC_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "{\"v\":1,\"op\":\"expect\",\"vm\":{\"name\":\"x\",\"nics\":null}}\n"); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}
