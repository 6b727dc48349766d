package clusterfile

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"
)

// maxPassword is the longest TCP MD5 key that Linux takes, in bytes
// (TCP_MD5SIG_MAXKEYLEN, linux/tcp.h).
const maxPassword = 80

// password reads the password file that the value names.
func (d *decoder) password(l literal) (string, error) {
	path, shown, err := d.fileOf(l, "the password")
	if err != nil {
		return "", err
	}
	data, err := readSecret(path, "the password", maxKey) // what is longer than Linux takes has a better error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist; create it with the password and mode 0600, or leave the key out", shown)
	case err != nil:
		return "", fmt.Errorf("%s: %w", shown, err)
	}
	return checkPassword(shown, string(data))
}

func checkPassword(shown, s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
	switch {
	case s == "":
		return "", fmt.Errorf("%s is empty; write the password into it, or leave the key out", shown)
	case len(s) > maxPassword:
		return "", fmt.Errorf("%s holds %d bytes; Linux takes TCP MD5 keys of at most %d, choose a shorter password", shown, len(s), maxPassword)
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", fmt.Errorf("%s has a control character or a second line; write the password alone into it", shown)
	}
	return s, nil
}
