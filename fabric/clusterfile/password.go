package clusterfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/vmfabric/vmfabric/internal/trusted"
)

// maxPassword is the longest TCP MD5 key that Linux takes, in bytes
// (TCP_MD5SIG_MAXKEYLEN, linux/tcp.h).
const maxPassword = 80

// password reads the password file that the value names.
func (d *decoder) password(l literal) (string, error) {
	if l.text == "" {
		return "", errors.New("empty; name the file with the password, or leave the key out")
	}
	path := l.text
	if !filepath.IsAbs(path) {
		path = filepath.Join(d.dir, path)
	}
	shown := bare(path)
	// Look at it before opening it: to open a pipe waits for a writer, and to open
	// a device can trigger it.
	info, err := os.Stat(path)
	if err == nil {
		switch {
		case !info.Mode().IsRegular():
			return "", fmt.Errorf("%s is not a regular file; name the file with the password", shown)
		case info.Mode().Perm()&0o077 != 0:
			return "", fmt.Errorf("%s is open to others (mode %04o); run 'chmod 600 %s'", shown, info.Mode().Perm(), shown)
		case info.Size() > maxPassword+2: // two for the line end
			return "", tooLong(shown, info.Size())
		}
		if err := trusted.Check(path); err != nil {
			if bad, ok := errors.AsType[*trusted.Error](err); ok {
				return "", fmt.Errorf("%s: %s", shown, bad.Text())
			}
			return "", fmt.Errorf("%s: %w", shown, reason(err))
		}
		var data []byte
		if data, err = os.ReadFile(path); err == nil {
			return checkPassword(shown, string(data))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s does not exist; create it with the password and mode 0600, or leave the key out", shown)
	}
	return "", fmt.Errorf("%s: %v; run this as the file's owner, or correct the path", shown, reason(err))
}

func checkPassword(shown, s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
	switch {
	case s == "":
		return "", fmt.Errorf("%s is empty; write the password into it, or leave the key out", shown)
	case len(s) > maxPassword:
		return "", tooLong(shown, int64(len(s)))
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", fmt.Errorf("%s has a control character or a second line; write the password alone into it", shown)
	}
	return s, nil
}

func tooLong(shown string, size int64) error {
	return fmt.Errorf("%s holds %d bytes; Linux takes TCP MD5 keys of at most %d, choose a shorter password", shown, size, maxPassword)
}
