package nodes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Version is the version of the lines. It grows with every change that an older
// agent must not overlook.
const Version = 1

const (
	// maxLine is the longest line, in bytes. The notice about a guest of the
	// largest size, with the report of its move, has 3 MiB.
	maxLine = 4 << 20
	// maxFirst is the longest line from a caller that has not shown yet that it has
	// the key. It is also the size of a connection's buffer: such a caller cannot
	// make it grow.
	maxFirst = 4 << 10
)

// hello is the first line of a connection; the listening side sends it. Unknown
// keys are skipped: a newer agent may add some, and still knows this version.
type hello struct {
	V       int    `json:"v"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Nonce   string `json:"nonce"`
	Keyed   bool   `json:"keyed"` // lines carry MACs from here on
	// KeyFrom is the source of the key; empty with Keyed: an older agent, whose key
	// comes from passwords.
	KeyFrom string `json:"key_from,omitempty"`
	// First is the greatest length of the first line, in bytes; zero: no limit of
	// its own.
	First int `json:"first,omitempty"`
	// Asks are the kinds of notice that the agent answers, of those that not all of its
	// version do.
	Asks []fabric.NoticeKind `json:"asks,omitempty"`
	// Now is the clock of the node. No MAC covers it: it is for people, and decides
	// nothing. Zero: an older agent.
	Now time.Time `json:"now,omitzero"`
}

// sealed is every other line.
type sealed struct {
	MAC  []byte          `json:"mac,omitempty"`
	Body json.RawMessage `json:"body"`
}

// request is the body of a question. Without a notice it is a greeting: it shows
// that the sender has the key, and asks for nothing. Only an agent that sends First
// in its [hello] knows greetings.
type request struct {
	V      int            `json:"v"`
	To     string         `json:"to"`    // the name of the asked node, so that no other answers in its place
	Nonce  string         `json:"nonce"` // so that no recorded answer fits
	From   sender         `json:"from"`
	Notice *fabric.Notice `json:"notice,omitempty"`
}

// sender is the asking node, as it describes itself.
type sender struct {
	Name     string     `json:"name"`
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
}

// reply is the body of an answer: either Answer or Error is set.
type reply struct {
	V      int            `json:"v"`
	Answer *fabric.Answer `json:"answer,omitempty"`
	Error  string         `json:"error,omitempty"` // one line: the thing, the reason, the way out
}

// version returns the version of a body.
func (r *request) version() int { return r.V }
func (r *reply) version() int   { return r.V }

// decode reads a body into v, a request or reply. Unknown keys are errors: this
// agent would not do what they ask for. by is the node that wrote the body, to the
// one that reads it.
func decode(body []byte, v interface{ version() int }, by, to string) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	version := v.version()
	if err != nil { // it may be of another version
		var head struct {
			V int `json:"v"`
		}
		if bad := json.Unmarshal(body, &head); bad != nil {
			return disagree("a line of %s that %s cannot read (%s); see what program runs there", by, to, oneline.OfJSON(bad))
		}
		version = head.V
	}
	switch {
	case version > Version:
		return disagree("the agent of %s speaks version %d of the agents' line, that of %s %d; upgrade %s", by, version, to, Version, to)
	case version < 1:
		return disagree(`a line of %s without a version; it begins with "v":%d, see what program runs there`, by, Version)
	case err != nil:
		return disagree("a line of %s that %s cannot read (%s); upgrade the older of the two agents", by, to, oneline.OfJSON(err))
	}
	return nil
}

// open reads a line. The caller still has to check its MAC.
func open(line []byte) (sealed, error) {
	var s sealed
	if err := json.Unmarshal(line, &s); err != nil {
		return s, disagree("a line that cannot be read (%s); see what program speaks there", oneline.OfJSON(err))
	}
	return s, nil
}

// encode returns v as JSON without a line end, so that it fits into another line.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(b) >= maxLine {
		return nil, fmt.Errorf("a line of %d bytes; %d are the most", len(b), maxLine)
	}
	return b, nil
}

var errTooLong = errors.New("a line that is too long")

// reader reads lines. Until its connection is trusted it keeps at most maxFirst
// bytes of one.
type reader struct {
	conn    net.Conn
	buf     *bufio.Reader
	trusted bool
}

func newReader(c net.Conn) *reader {
	return &reader{conn: c, buf: bufio.NewReaderSize(c, maxFirst)}
}

// next returns the next line, or io.EOF. The line is valid until the next call. If
// the connection ends within a line, next returns [io.ErrUnexpectedEOF] and not the
// part. It waits for the time wait, and until ctx ends. Each further part of a long
// line has patience.
func (r *reader) next(ctx context.Context, wait time.Duration) ([]byte, error) {
	var long []byte
	until(ctx, r.conn.SetReadDeadline, wait)
	for {
		part, err := r.buf.ReadSlice('\n')
		switch {
		case err == nil && long == nil:
			return part[:len(part)-1], nil
		case err == nil && len(long)+len(part) <= maxLine:
			return append(long, part[:len(part)-1]...), nil
		case err == nil:
			return nil, errTooLong
		case errors.Is(err, io.EOF) && len(long)+len(part) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case !r.trusted, len(long)+len(part) > maxLine:
			return nil, errTooLong
		}
		long = append(long, part...)
		until(ctx, r.conn.SetReadDeadline, patience)
	}
}

// until sets a deadline after the time wait, or one in the past if ctx has ended:
// the function that runs at the end of ctx may have set its deadline before this
// one.
func until(ctx context.Context, set func(time.Time) error, wait time.Duration) {
	set(time.Now().Add(wait))
	if ctx.Err() != nil {
		set(past)
	}
}

// disagreement is an error between two agents that answer each other. It stays
// until somebody corrects its cause.
type disagreement struct{ text string }

func (d *disagreement) Error() string { return d.text }

func disagree(format string, args ...any) error {
	return &disagreement{printable(fmt.Sprintf(format, args...))}
}

// printable makes text from another node fit for an error.
func printable(s string) string {
	const most = 600
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s), "?")
}

func disagrees(err error) bool {
	_, ok := errors.AsType[*disagreement](err)
	return ok
}
