// Prepare fills the lab's cache with the kernel, which comes from a package mirror,
// and the initial file system of the guests. Then no test downloads anything in its
// own time. With -clients it makes the root and initial file systems of TestClients, too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	withClients := flag.Bool("clients", false, "make the root file systems of guests that configure themselves")
	releases := flag.String("machines", "", "make machines with these `releases` of Debian")
	flag.Parse()
	if err := prepare(ctx, *withClients, strings.FieldsFunc(*releases, func(r rune) bool { return r == ',' })); err != nil {
		fmt.Fprintf(os.Stderr, "prepare: %v\n", err)
		os.Exit(1)
	}
}

func prepare(ctx context.Context, withClients bool, machines []string) error {
	if _, err := hypervisors.GuestImage(ctx); err != nil {
		return err
	}
	for _, release := range machines {
		if _, err := machine.Debian(ctx, release); err != nil {
			return err
		}
	}
	if !withClients {
		return nil
	}
	for _, release := range clients.Releases {
		if _, err := clients.Debian(ctx, release); err != nil {
			return err
		}
	}
	for _, i := range clients.Initramfses {
		if _, _, err := i.Files(ctx); err != nil {
			return err
		}
	}
	_, err := hypervisors.DebianImage(ctx)
	return err
}
