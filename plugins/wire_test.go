package plugins

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

func TestSessionsOnTheWire(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC).Local()
	for name, s := range map[string]fabric.Session{
		"all":           {Peer: "rr1", Address: "10.10.0.11", State: "established", Since: at, Advertised: 3, Families: []fabric.Family{fabric.IPv4, fabric.IPv6}},
		"one family":    {Peer: "rr1", State: "established", Families: []fabric.Family{fabric.IPv6}},
		"none":          {Peer: "rr1", State: "established", Families: []fabric.Family{}},
		"not known":     {Peer: "rr1", State: "established"},
		"shut down":     {Peer: "rr1", State: "active", Notification: fabric.NewNotification(false, 6, 2, "planned \u202ework", at)},
		"by this side":  {Peer: "rr1", State: "active", Notification: fabric.NewNotification(true, 4, 0, "", time.Time{})},
		"code unknown":  {Peer: "rr1", State: "active", Notification: fabric.NewNotification(false, 0, 0, "", at)},
		"greatest text": {Peer: "rr1", State: "active", Notification: fabric.NewNotification(false, 6, 2, strings.Repeat("\x1b", 255), at)},
	} {
		assert.Equal(t, s, sessionIn(sessionOut(s)), name)
	}
	// Of a plugin in another language, or of one before these fields.
	assert.Equal(t, fabric.Session{Peer: "rr1"}, sessionIn(&pb.Session{Peer: "rr1", Families: []string{"ipv4"}}), "not said to be known")
	assert.Equal(t, []fabric.Family{fabric.IPv4}, sessionIn(&pb.Session{FamiliesKnown: true, Families: []string{"ipv4", "l2vpn \x1b[2J"}}).Families)
	assert.Nil(t, sessionIn(&pb.Session{Notification: &pb.Notification{Code: 256}}).Notification)
	n := sessionIn(&pb.Session{Notification: &pb.Notification{Code: 6, Subcode: 4, Communication: "a\nb\x1b"}}).Notification
	assert.Equal(t, `a\u000ab\u001b`, n.Communication)
}

func TestAdvertisementsOnTheWire(t *testing.T) {
	t.Parallel()
	all := []fabric.Advertisement{{Peer: "rr1", Address: "10.10.0.11", Sent: true}, {Peer: "rr2", Address: "fd00::12", Reason: "it takes no IPv6"}}
	assert.Equal(t, all, advertisementsIn(advertisementsOut(all)))
	assert.Equal(t, "a; b", advertisementsIn([]*pb.Advertisement{{Reason: "a\nb"}})[0].Reason)
}
