package packed

import (
	"encoding/hex"
	"strings"
)

// uuidText is the length of a UUID as text.
const uuidText = 36

// CutUUID cuts a UUID from the end of a text, if it has one in its usual form.
func CutUUID(text string) (before string, uuid [16]byte, there bool) {
	at := len(text) - uuidText
	if at < 0 {
		return text, uuid, false
	}
	digits, err := hex.DecodeString(strings.ReplaceAll(text[at:], "-", ""))
	if err != nil || len(digits) != len(uuid) || UUIDText([16]byte(digits)) != text[at:] {
		return text, uuid, false
	}
	return text[:at], [16]byte(digits), true
}

// UUIDText gives a UUID in its usual form.
func UUIDText(u [16]byte) string {
	digits := hex.EncodeToString(u[:])
	return strings.Join([]string{digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]}, "-")
}
