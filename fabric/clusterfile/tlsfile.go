package clusterfile

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmfabric/vmfabric/internal/trusted"
)

// maxPEM is the longest file of certificates that is read, in bytes: the system's own
// list of authorities fits.
const maxPEM = 1 << 20

// certificates reads the PEM file that the value names. Everybody may read it.
func (d *decoder) certificates(l literal) (string, error) {
	path, shown, err := d.fileOf(l, "certificates")
	if err != nil || d.withoutKey {
		return "", err
	}
	info, err := os.Stat(path) // before it is opened: to open a pipe waits for a writer
	switch {
	case err == nil && !info.Mode().IsRegular():
		return "", fmt.Errorf("%s: not a regular file; name the file with the certificates", shown)
	case err == nil && info.Size() > maxPEM:
		return "", fmt.Errorf("%s: %d bytes; a file of certificates has at most %d", shown, info.Size(), maxPEM)
	case err == nil:
		err = trusted.Check(path)
	}
	if bad, ok := errors.AsType[*trusted.Error](err); ok {
		return "", fmt.Errorf("%s: %s", shown, bad.Text())
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist; copy it here from where etcd's certificates are made, or correct the path", shown)
	case err != nil:
		return "", fmt.Errorf("%s: %w", shown, plain(err))
	}
	found := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Errorf("%s: certificate %d cannot be read (%v); copy the file again", shown, found+1, err)
		}
		found++
	}
	if found == 0 {
		return "", fmt.Errorf("%s has no certificate in PEM form; name the file that begins with -----BEGIN CERTIFICATE-----", shown)
	}
	return string(data), nil
}

// privateKey reads the PEM file with the key of a certificate, which nobody else may
// read.
func (d *decoder) privateKey(l literal) (string, error) {
	path, shown, err := d.fileOf(l, "the certificate's key")
	if err != nil || d.withoutKey {
		return "", err
	}
	data, err := readSecret(path, "the certificate's key", maxPEM)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist; copy it here from where etcd's certificates are made, or correct the path", shown)
	case err != nil:
		return "", fmt.Errorf("%s: %w", shown, err)
	}
	if block, _ := pem.Decode(data); block == nil {
		return "", fmt.Errorf("%s has no key in PEM form; name the file that begins with -----BEGIN", shown)
	}
	return string(data), nil
}

// fileOf gives the path of the file that the value names, and how errors show it.
func (d *decoder) fileOf(l literal, what string) (path, shown string, err error) {
	if l.text == "" {
		return "", "", fmt.Errorf("empty; name the file with %s, or leave the key out", what)
	}
	path = l.text
	if !filepath.IsAbs(path) {
		path = filepath.Join(d.dir, path)
	}
	return path, bare(path), nil
}
