package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/mdlayher/ndp"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
)

// demoGuestTime is how long a guest waits for answers, which take milliseconds.
const demoGuestTime = time.Minute

// demoGuestCommand is a guest of the demonstration that configures its link by what its
// node tells it.
func demoGuestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "guest LINK", Hidden: true, Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			link, err := netlink.LinkByName(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoGuestTime)
			defer cancel()
			g := demoGuest{link, json.NewEncoder(cmd.OutOrStdout())}
			return errors.Join(g.askDHCPv4(ctx), g.askRouter(ctx), g.askDHCPv6(ctx))
		},
	}
}

// demoGuest asks for the configuration of a link. What it is told it applies, and writes
// as one line of JSON each.
type demoGuest struct {
	link netlink.Link
	out  *json.Encoder
}

// told is a line of a guest's.
type told struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// readTold reads the lines of a guest as events of the trace.
func readTold(guest, out string) (events []event, err error) {
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var t told
		switch err := d.Decode(&t); {
		case errors.Is(err, io.EOF):
			return events, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", guest, err)
		}
		events = append(events, event{t.At, fmt.Sprintf("%-8s %s", guest, t.Text)})
	}
}

func (g demoGuest) say(format string, args ...any) error {
	return g.out.Encode(told{time.Now(), fmt.Sprintf(format, args...)})
}

// askDHCPv4 gets the IPv4 address, and installs the routes in the order given (RFC 3442).
func (g demoGuest) askDHCPv4(ctx context.Context) error {
	client, err := nclient4.New(g.link.Attrs().Name)
	if err != nil {
		return fmt.Errorf("DHCPv4: %w", err)
	}
	defer client.Close()
	lease, err := client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("vmfabric demo")))
	if err != nil {
		return fmt.Errorf("DHCPv4: %w", err)
	}
	ack := lease.ACK
	address := &net.IPNet{IP: ack.YourIPAddr, Mask: ack.SubnetMask()}
	if err := g.address(address); err != nil {
		return err
	}
	var routes []string
	for _, r := range ack.ClasslessStaticRoute() {
		if err := g.route(r.Dest, r.Router); err != nil {
			return err
		}
		way := "via " + r.Router.String()
		if r.Router.IsUnspecified() {
			way = "on the link"
		}
		routes = append(routes, r.Dest.String()+" "+way)
	}
	return g.say("is told by DHCPv4: %s, %s", address, strings.Join(routes, ", "))
}

// askRouter solicits an advertisement, and takes its sender for the default router.
func (g demoGuest) askRouter(ctx context.Context) error {
	link, err := net.InterfaceByIndex(g.link.Attrs().Index)
	if err != nil {
		return fmt.Errorf("router solicitation: %w", err)
	}
	conn, _, err := ndp.Listen(link, ndp.LinkLocal)
	if err != nil {
		return fmt.Errorf("router solicitation: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	solicitation := &ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: link.HardwareAddr}}}
	if err := conn.WriteTo(solicitation, nil, netip.IPv6LinkLocalAllRouters()); err != nil {
		return fmt.Errorf("router solicitation: %w", err)
	}
	for {
		m, _, from, err := conn.ReadFrom()
		if err != nil {
			return fmt.Errorf("router advertisement: %w", err)
		}
		ra, is := m.(*ndp.RouterAdvertisement)
		if !is || ra.RouterLifetime == 0 {
			continue
		}
		from = from.WithZone("")
		if err := g.route(&net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, from.AsSlice()); err != nil {
			return err
		}
		return g.say("is told by a router advertisement: default via %s, addresses by DHCPv6 (%t)", from, ra.ManagedConfiguration)
	}
}

// askDHCPv6 gets the IPv6 addresses, in two messages (RFC 8415, 18.2.1).
func (g demoGuest) askDHCPv6(ctx context.Context) error {
	client, err := nclient6.New(g.link.Attrs().Name)
	if err != nil {
		return fmt.Errorf("DHCPv6: %w", err)
	}
	defer client.Close()
	reply, err := client.RapidSolicit(ctx)
	if err != nil {
		return fmt.Errorf("DHCPv6: %w", err)
	}
	ia := reply.Options.OneIANA()
	if ia == nil || len(ia.Options.Addresses()) == 0 {
		return errors.New("DHCPv6: no address in the reply")
	}
	var addresses []string
	for _, a := range ia.Options.Addresses() {
		if err := g.address(&net.IPNet{IP: a.IPv6Addr, Mask: net.CIDRMask(128, 128)}); err != nil {
			return err
		}
		addresses = append(addresses, a.IPv6Addr.String())
	}
	return g.say("is told by DHCPv6: %s", strings.Join(addresses, ", "))
}

func (g demoGuest) address(a *net.IPNet) error {
	if err := netlink.AddrReplace(g.link, &netlink.Addr{IPNet: a}); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}

// route adds a route on the link if its router is the unspecified address.
func (g demoGuest) route(to *net.IPNet, router net.IP) error {
	r := &netlink.Route{LinkIndex: g.link.Attrs().Index, Dst: to, Gw: router}
	if router.IsUnspecified() {
		r.Gw, r.Scope = nil, netlink.SCOPE_LINK
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %s: %w", to, router, err)
	}
	return nil
}
