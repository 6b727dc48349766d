package bird

import (
	"bufio"
	"context"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// BIRD's words for the sender of a NOTIFICATION, in its log and in a session's last
// error. A session that ended without a NOTIFICATION has other words there.
const (
	wasReceived = "Received"
	wasSent     = "BGP Error" // "Error" in the log
	wasSentLog  = "Error"
)

// notification reads the last error of a session, "Received: Bad peer AS", and
// the message with which a session was shut down. It returns nil if the session did
// not end with a NOTIFICATION. A protocol that is down without an error was disabled
// here.
func notification(lastError, message, state string) *fabric.Notification {
	who, reason, _ := strings.Cut(lastError, ": ")
	switch {
	case who == wasReceived || who == wasSent:
		return parseReason(who == wasSent, reason, message, time.Time{})
	case lastError == routeLimit:
		return fabric.NewNotification(true, cease, tooManyPrefixes, "", time.Time{})
	case lastError == "" && state == "down":
		return fabric.NewNotification(true, cease, adminShutdown, message, time.Time{})
	}
	return nil
}

// routeLimit is the last error of a session that BIRD ended itself because of its
// configuration (import limit ... action disable).
const routeLimit = "Automatic shutdown: Route limit exceeded"

// parseReason returns the NOTIFICATION that BIRD's words describe.
func parseReason(sent bool, reason, communication string, at time.Time) *fabric.Notification {
	code, subcode, _ := fabric.NotificationCode(reason)
	if code != cease || subcode != adminShutdown && subcode != adminReset {
		communication = ""
	}
	return fabric.NewNotification(sent, code, subcode, communication, at)
}

const (
	cease           = 6
	tooManyPrefixes = 1
	// Those that carry a communication (RFC 9003).
	adminShutdown = 2
	adminReset    = 4
)

// logged reads a line of BIRD's log about a notification, such as
//
//	to_rr1: Received: Administrative shutdown: "planned work"
//	to_rr1: Error: Bad peer AS: 65000
//
// and returns the name of the protocol.
func logged(line string, at time.Time) (protocol string, n *fabric.Notification) {
	protocol, rest, ok := strings.Cut(line, ": ")
	who, what, ok2 := strings.Cut(rest, ": ")
	if !ok || !ok2 || who != wasReceived && who != wasSentLog {
		return "", nil
	}
	reason, data, _ := strings.Cut(what, ": ")
	communication := strings.TrimSuffix(strings.TrimPrefix(data, `"`), `"`)
	return protocol, parseReason(who != wasReceived, reason, communication, at)
}

// follow passes on the NOTIFICATIONs that BIRD logs, with the protocols' names, until
// ctx or BIRD ends. The last error that BIRD shows of a session is soon that of the
// next attempt: the connection was refused. BIRD also writes its log to the control
// socket, without any configuration.
func (c Client) follow(ctx context.Context, emit func(protocol string, n *fabric.Notification)) error {
	return c.converse(ctx, "echo all", func(_ []string, in *bufio.Reader) error {
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return err
			}
			if line, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "+"); ok {
				if protocol, n := logged(line, time.Now()); n != nil {
					emit(protocol, n)
				}
			}
		}
	})
}
