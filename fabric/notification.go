package fabric

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Notification is a NOTIFICATION message, with which one side of a BGP session
// ends it (RFC 4271, 4.5). [NewNotification] makes one whose texts are safe to
// print.
type Notification struct {
	Sent    bool  `json:"sent"`    // true: this side sent it; false: the peer
	Code    uint8 `json:"code"`    // zero: the speaker does not say which one came
	Subcode uint8 `json:"subcode"` // zero: none
	// Reason is what code and subcode mean: "Cease, Administrative Shutdown".
	Reason string `json:"reason"`
	// Communication is the text of the side that ended the session (RFC 9003).
	Communication string    `json:"communication,omitempty"`
	At            time.Time `json:"at,omitzero"` // zero: not known
}

const (
	maxCommunication = 255 // bytes (RFC 9003)
	maxFamily        = 64  // bytes of the name of an unknown family
)

// NewNotification makes a notification. The communication comes from another
// machine: characters that act on a terminal, or change the direction of
// writing, are escaped, and it is cut at the length that RFC 9003 allows.
func NewNotification(sent bool, code, subcode uint8, communication string, at time.Time) *Notification {
	return &Notification{
		Sent: sent, Code: code, Subcode: subcode, Reason: notificationReason(code, subcode),
		Communication: escape(communication, maxCommunication), At: at,
	}
}

// String gives reason, code and communication, as
// `Cease, Administrative Shutdown (6/2), "planned work"`.
func (n Notification) String() string {
	s := n.Reason
	if n.Code != 0 {
		s = fmt.Sprintf("%s (%d/%d)", s, n.Code, n.Subcode)
	}
	if n.Communication != "" {
		s += fmt.Sprintf(", \"%s\"", n.Communication)
	}
	return s
}

// from says which side ended the session, and how.
func (n Notification) from(peer string) string {
	if n.Sent {
		return "this side ended it with " + n.String()
	}
	return peer + " ended it with " + n.String()
}

// Codes and subcodes with a remedy of their own.
const (
	openError        = 2
	holdTimerExpired = 4
	cease            = 6

	unacceptableAS   = 2 // of openError
	tooManyPrefixes  = 1 // of cease, like those below
	adminShutdown    = 2
	deconfigured     = 3
	adminReset       = 4
	connectionRefuse = 5
)

// remedy says what the operator can do about it.
func (n Notification) remedy() string {
	switch {
	case n.Code == openError && n.Subcode == unacceptableAS:
		return "give both sides the same AS numbers: asn in the cluster file, and in the configuration that is rendered from it"
	case n.Code == holdTimerExpired:
		return "check that both sides run and that packets pass between them"
	case n.Code == cease && n.Subcode == tooManyPrefixes:
		return "announce less, or raise max_prefixes in the cluster file and render the reflector's configuration anew"
	case n.Code == cease && n.Subcode == adminShutdown && n.Sent:
		return "enable the session on this side again"
	case n.Code == cease && n.Subcode == adminShutdown:
		return "enable the session there again, or ask who disabled it"
	case n.Code == cease && (n.Subcode == deconfigured || n.Subcode == connectionRefuse):
		return "add this side to the configuration there, as it is rendered from the cluster file"
	case n.Code == cease && n.Subcode == adminReset:
		return "wait until it comes back"
	}
	return "see the log of the other side"
}

// The names are those of the IANA registry of BGP error codes: RFC 4271, 4486,
// 5492, 6608, 7313, 8538, 9003, 9234, 9384.
var notificationCodes = map[uint8]string{
	1: "Message Header Error", openError: "OPEN Message Error", 3: "UPDATE Message Error", holdTimerExpired: "Hold Timer Expired",
	5: "Finite State Machine Error", cease: "Cease", 7: "ROUTE-REFRESH Message Error", 8: "Send Hold Timer Expired",
}

var notificationSubcodes = map[[2]uint8]string{
	{1, 1}: "Connection Not Synchronized", {1, 2}: "Bad Message Length", {1, 3}: "Bad Message Type",
	{2, 1}: "Unsupported Version Number", {2, 2}: "Bad Peer AS", {2, 3}: "Bad BGP Identifier", {2, 4}: "Unsupported Optional Parameter",
	{2, 6}: "Unacceptable Hold Time", {2, 7}: "Unsupported Capability", {2, 11}: "Role Mismatch",
	{3, 1}: "Malformed Attribute List", {3, 2}: "Unrecognized Well-known Attribute", {3, 3}: "Missing Well-known Attribute",
	{3, 4}: "Attribute Flags Error", {3, 5}: "Attribute Length Error", {3, 6}: "Invalid ORIGIN Attribute", {3, 8}: "Invalid NEXT_HOP Attribute",
	{3, 9}: "Optional Attribute Error", {3, 10}: "Invalid Network Field", {3, 11}: "Malformed AS_PATH",
	{5, 1}: "Unexpected Message in OpenSent State", {5, 2}: "Unexpected Message in OpenConfirm State", {5, 3}: "Unexpected Message in Established State",
	{6, 1}: "Maximum Number of Prefixes Reached", {6, 2}: "Administrative Shutdown", {6, 3}: "Peer De-configured", {6, 4}: "Administrative Reset",
	{6, 5}: "Connection Rejected", {6, 6}: "Other Configuration Change", {6, 7}: "Connection Collision Resolution", {6, 8}: "Out of Resources",
	{6, 9}: "Hard Reset", {6, 10}: "BFD Down",
	{7, 1}: "Invalid Message Length",
}

func notificationReason(code, subcode uint8) string {
	if code == 0 {
		return "a NOTIFICATION"
	}
	reason, known := notificationCodes[code]
	if !known {
		reason = "unknown error"
	}
	if sub, known := notificationSubcodes[[2]uint8{code, subcode}]; known {
		reason += ", " + sub
	}
	return reason
}

// NotificationCode gives code and subcode of a reason in the words of a routing
// daemon; known is false for other texts. The case of letters does not matter.
// The reason of the code may stand before that of the subcode.
func NotificationCode(reason string) (code, subcode uint8, known bool) {
	plain := func(s string) string {
		return strings.ToLower(strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) {
				return r
			}
			return -1
		}, s))
	}
	want := plain(reason)
	for key, sub := range notificationSubcodes {
		if want == plain(sub) || want == plain(notificationCodes[key[0]]+sub) {
			return key[0], key[1], true
		}
	}
	for key, name := range notificationCodes {
		if want == plain(name) {
			return key, 0, true
		}
	}
	return 0, 0, false
}

// escape makes text from another machine safe for one line on a terminal, of at
// most so many bytes: it writes characters that do not print as Go escapes. Text
// that is escaped already stays as it is.
func escape(s string, most int) string {
	const more = "..."
	var b strings.Builder
	cut := 0 // the length at which "..." still fits
	for len(s) > 0 && b.Len() <= most {
		r, size := utf8.DecodeRuneInString(s)
		piece := s[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, s[0])
		// IsPrint is false for control characters, for format characters, among
		// them those that change the direction of writing, and for all spaces but
		// the plain one.
		case unicode.IsPrint(r) && !blank(r):
		case r <= 0xffff:
			piece = fmt.Sprintf(`\u%04x`, r)
		default:
			piece = fmt.Sprintf(`\U%08x`, r)
		}
		b.WriteString(piece)
		if b.Len() <= most-len(more) {
			cut = b.Len()
		}
		s = s[size:]
	}
	if text := b.String(); len(text) <= most {
		return text
	}
	return b.String()[:cut] + more
}
