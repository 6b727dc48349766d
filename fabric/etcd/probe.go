package etcd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

const (
	probeTime = 600 * time.Millisecond
	// rejectTime is how long a member may take to reject a certificate after the
	// handshake, which ends before that for the client.
	rejectTime = 150 * time.Millisecond
	// reasonAge is how long what was found out answers everybody.
	reasonAge = 500 * time.Millisecond
	// expiresSoon is when Diagnose begins to speak of the end of a certificate.
	expiresSoon = 14 * 24 * time.Hour
)

// prober finds out why etcd does not answer. Its client says no more than that a
// deadline has passed.
type prober struct {
	endpoints []string
	tls       *tls.Config
	due       atomic.Bool // a call has shown that a member is not well

	mu     sync.Mutex
	at     time.Time
	faults map[string]string // by endpoint; those without a fault are missing
}

func newProber(endpoints []string, secure *tls.Config) *prober {
	return &prober{endpoints: endpoints, tls: secure}
}

// reason says why a call failed with err, for people.
func (p *prober) reason(ctx context.Context, client *clientv3.Client, err error) string {
	faults := p.look(ctx, client, reasonAge)
	if len(faults) == 0 && ctx.Err() != nil {
		return "etcd did not answer in time"
	}
	if len(faults) == 0 {
		return fmt.Sprintf("etcd answers, and does not do it (%s); see whether its disks and its network are overloaded", oneline.Of(err.Error()))
	}
	return "etcd does not answer: " + textOf(faults, len(p.endpoints))
}

// faulty reports whether the last look found a fault.
func (p *prober) faulty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.faults) > 0
}

// look asks each member, unless that was done a shorter time ago than age. If ctx ends
// meanwhile, it gives what was found before.
func (p *prober) look(ctx context.Context, client *clientv3.Client, age time.Duration) map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < age {
		return p.faults
	}
	found := make([]string, len(p.endpoints))
	var asking sync.WaitGroup
	for i, endpoint := range p.endpoints {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTime)
			defer cancel()
			if found[i] = p.connects(ctx, endpoint); found[i] == "" {
				found[i] = p.serves(ctx, client, endpoint)
			}
		})
	}
	asking.Wait()
	if ctx.Err() != nil { // a member that had no time to answer has no fault
		return p.faults
	}
	p.faults = map[string]string{}
	for i, fault := range found {
		if fault != "" {
			p.faults[p.endpoints[i]] = fault
		}
	}
	p.at = time.Now()
	return p.faults
}

// members lists the endpoints at which no other server than etcd was found; if there are
// none, all.
func (p *prober) members() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := slices.DeleteFunc(slices.Clone(p.endpoints), func(e string) bool { return p.faults[e] == noEtcd })
	if len(known) == 0 {
		return p.endpoints
	}
	return known
}

// problems is whether this node's certificate ends soon, and what look found last, if
// the members are asked for.
func (p *prober) problems(now time.Time, members bool) (texts []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if members && len(p.faults) > 0 {
		texts = append(texts, "etcd: "+textOf(p.faults, len(p.endpoints)))
	}
	for _, pair := range p.tls.Certificates {
		if left := pair.Leaf.NotAfter.Sub(now); left < expiresSoon {
			ends := "ends"
			if left < 0 {
				ends = "ended"
			}
			texts = append(texts, fmt.Sprintf("this node's certificate for etcd %s at %s; make a new one, and restart the agent", ends, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)))
		}
	}
	return texts
}

// textOf puts endpoints with one fault together.
func textOf(faults map[string]string, of int) string {
	at := map[string][]string{}
	for _, endpoint := range slices.Sorted(maps.Keys(faults)) {
		at[faults[endpoint]] = append(at[faults[endpoint]], endpoint)
	}
	var texts []string
	for _, fault := range slices.Sorted(maps.Keys(at)) {
		texts = append(texts, strings.Join(at[fault], " and ")+": "+fault)
	}
	if of > len(faults) {
		texts = append(texts, fmt.Sprintf("%d of %d members answer", of-len(faults), of))
	}
	return strings.Join(texts, "; ")
}

// connects says why there is no connection to a member; empty: there is.
func (p *prober) connects(ctx context.Context, endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err.Error()
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there; start etcd, or correct the endpoint"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "the machine does not answer; see that it is up, and that no packet filter is in between"
	case err != nil:
		return oneline.Of(err.Error()) + "; correct the endpoint, or see that the machine can be reached"
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	_ = conn.SetDeadline(end)
	if u.Scheme == "http" {
		return inPlainText(conn)
	}
	secure := p.tls.Clone()
	secure.ServerName, secure.NextProtos = u.Hostname(), []string{"h2"}
	s := tls.Client(conn, secure)
	if err := s.HandshakeContext(ctx); err != nil {
		return tlsFault(err, u.Hostname())
	}
	if s.ConnectionState().NegotiatedProtocol != "h2" {
		return noEtcd
	}
	// With TLS 1.3 the member looks at the client's certificate after the client's
	// handshake has ended.
	_ = s.SetDeadline(time.Now().Add(rejectTime))
	if _, err := s.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return tlsFault(err, u.Hostname())
	}
	return ""
}

// noEtcd is the fault of an endpoint at which another server answers.
const noEtcd = "what answers there is no etcd; correct the endpoint, which is an address at which etcd hears clients (port 2379)"

// strange reports an error that no etcd gives: another server answers gRPC, or HTTP/2.
// Nothing has happened there.
func strange(err error) bool {
	is, grpc := status.FromError(err)
	return grpc && (is.Code() == codes.Unimplemented || strings.Contains(is.Message(), "unexpected HTTP status code") || strings.Contains(is.Message(), "unexpected content-type"))
}

// inPlainText asks a server in plain text; one that wants TLS says so.
func inPlainText(conn net.Conn) string {
	_ = conn.SetDeadline(time.Now().Add(2 * rejectTime))
	if _, err := fmt.Fprint(conn, "GET /health HTTP/1.0\r\n\r\n"); err != nil {
		return ""
	}
	said, _, err := bufio.NewReader(conn).ReadLine()
	switch says := string(said); {
	case errors.Is(err, os.ErrDeadlineExceeded): // it stands still, or its machine is busy: serves says so
	case strings.Contains(says, " 400 "), strings.HasPrefix(says, "\x15\x03"): // an alert of TLS
		return "it does not answer without TLS; write https, and name the authority under ca_file"
	case says == "":
		return "it does not answer without TLS; write https, and name the authority under ca_file, or correct the endpoint, if no etcd is there"
	case !strings.HasPrefix(says, "HTTP/"):
		return noEtcd
	}
	return ""
}

// tlsFault says what is wrong with the certificates of a connection.
func tlsFault(err error, host string) string {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		plain     tls.RecordHeaderError
		rejected  *net.OpError
	)
	says := oneline.Of(err.Error())
	switch {
	case errors.As(err, &authority):
		return "its certificate is of another authority than that of ca_file; name the authority that signed it"
	case errors.As(err, &name):
		return fmt.Sprintf("its certificate is not for %s; make one that has it among its names (subjectAltName)", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("its certificate is not valid now (%s); make a new one, or correct the clock", says)
	case errors.As(err, &plain):
		return "it does not speak TLS; write http, or give etcd certificates"
	case errors.As(err, &rejected) && rejected.Op == "remote error":
		switch said := rejected.Err.Error(); {
		case strings.Contains(said, "expired"):
			return "this node's certificate has expired for it; make a new one, or correct its clock"
		case strings.Contains(said, "required"), strings.Contains(said, "bad certificate"):
			return fmt.Sprintf("it does not take this node's certificate (%s): there is none, it has expired, or another authority signed it; name a valid one under cert_file", said)
		default:
			return fmt.Sprintf("it does not take this node's certificate (%s); name one under cert_file that etcd's authority signed", said)
		}
	}
	return "no TLS connection (" + says + "); see what etcd's log says of it"
}

// serves says why a member that can be reached does not serve; empty: it does.
func (p *prober) serves(ctx context.Context, client *clientv3.Client, endpoint string) string {
	is, err := client.Status(ctx, endpoint)
	switch {
	case strange(err):
		return noEtcd
	case err != nil:
		return fmt.Sprintf("it takes connections and does not answer (%s); see what its log says", oneline.Of(err.Error()))
	case slices.ContainsFunc(is.Errors, func(e string) bool { return strings.Contains(e, "NOSPACE") }):
		return "its database is full; compact and defragment it, and end the alarm (etcdctl alarm disarm)"
	case is.Leader == 0:
		return "it has no majority; start the other members, or see that they reach each other"
	case len(is.Errors) > 0:
		return oneline.Of(strings.Join(is.Errors, ", ")) + "; see what its log says"
	}
	return ""
}

// Check asks each member of an etcd how it is, once, and says what is wrong with it, and
// whether etcd is open: it lets somebody read who is none of its users, as one does that has
// the certificates of conf. The error says what is wrong with these.
func Check(ctx context.Context, conf *fabric.EtcdConfig) (texts []string, open bool, err error) {
	secure, err := tlsOf(conf)
	if err != nil {
		return nil, false, err
	}
	client, err := connect(ctx, conf, secure)
	if err != nil {
		return nil, false, err
	}
	defer client.Close()
	p := newProber(conf.Endpoints, secure)
	faults := p.look(ctx, client, 0)
	for _, endpoint := range slices.Sorted(maps.Keys(faults)) {
		texts = append(texts, endpoint+": "+faults[endpoint])
	}
	if len(faults) < len(conf.Endpoints) {
		one, cancel := context.WithTimeout(ctx, tryTime)
		defer cancel()
		_, denied := client.Get(one, conf.Prefix, clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithSerializable())
		open = denied == nil
	}
	return texts, open, ctx.Err()
}
