package bird

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
)

// journal keeps what BIRD logs of NOTIFICATIONs. A session's last error, which
// BIRD shows, is soon that of the next attempt: that the connection was refused.
type journal struct {
	client Client
	log    *slog.Logger

	mu   sync.Mutex
	last map[string]*fabric.Notification // by protocol
}

// follow reads BIRD's log until ctx ends, over its control socket, which needs
// no configuration. A BIRD that is not there, or does not let us, is tried again.
func (j *journal) follow(ctx context.Context) {
	for rest := firstRetry; ; rest = min(2*rest, mostRetry) {
		began := time.Now()
		err := j.client.echo(ctx, j.note)
		if ctx.Err() != nil {
			return
		}
		j.log.Debug("BIRD's log is not followed", "err", err)
		if time.Since(began) > mostRetry {
			rest = firstRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

func (j *journal) note(line string) {
	protocol, n := logged(line, time.Now())
	if n == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last[protocol] = n
}

// add completes what the sessions say of their last NOTIFICATIONs. Where they
// say another, that is newer than any of which the log was read.
func (j *journal) add(sessions []fabric.Session) []fabric.Session {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, s := range sessions {
		seen := j.last[s.Peer]
		if n := s.Notification; seen != nil && (n == nil || n.Sent == seen.Sent && n.Code == seen.Code && n.Subcode == seen.Subcode) {
			sessions[i].Notification = seen
		}
	}
	return sessions
}

// sessions is [Client.Sessions] with what the journal knows.
func (j *journal) sessions(ctx context.Context) ([]fabric.Session, error) {
	all, err := j.client.Sessions(ctx)
	return j.add(all), err
}

// echo hands on what BIRD logs, line by line, until ctx ends or BIRD does.
func (c Client) echo(ctx context.Context, line func(string)) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket())
	if err != nil {
		return c.reason(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = conn.SetDeadline(time.Now().Add(replyBound))
	in := bufio.NewReader(conn)
	if _, err = readReply(in); err == nil { // the greeting
		_, err = fmt.Fprintln(conn, "echo all")
	}
	if err == nil {
		_, err = readReply(in)
	}
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	for ctx.Err() == nil {
		text, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if text, ok := strings.CutPrefix(strings.TrimRight(text, "\n"), "+"); ok {
			line(text)
		}
	}
	return ctx.Err()
}
