package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNoTimeToLook: a call whose time is over says nothing about the members, neither to
// itself nor to those that ask next.
func TestNoTimeToLook(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	endpoint := "http://" + l.Addr().String()
	over, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()

	p := newProber([]string{endpoint}, &tls.Config{MinVersion: tls.VersionTLS12})
	assert.Equal(t, "etcd did not answer in time", p.reason(over, nil, errors.New("late")))
	assert.False(t, p.faulty())
	says := "etcd does not answer: " + endpoint + ": nothing listens there; start etcd, or correct the endpoint"
	assert.Equal(t, says, p.reason(t.Context(), nil, errors.New("late")))
	assert.Len(t, p.look(over, nil, 0), 1)
	assert.Equal(t, says, p.reason(over, nil, errors.New("late")))
}

func TestEndOfCertificate(t *testing.T) {
	end := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	p := newProber(nil, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Leaf: &x509.Certificate{NotAfter: end}}}})
	for after, says := range map[time.Duration]string{-time.Hour: "ends", time.Hour: "ended"} {
		want := []string{"this node's certificate for etcd " + says + " at 2027-01-02T03:04:05Z; make a new one, and restart the agent"}
		assert.Equal(t, want, p.problems(end.Add(after), false))
	}
	assert.Empty(t, p.problems(end.Add(-expiresSoon), false))
}
