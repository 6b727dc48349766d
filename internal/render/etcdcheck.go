package render

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/etcd"
)

// expiresSoon is when a member's certificate is to be made anew.
const expiresSoon = 14 * 24 * time.Hour

// CheckEtcd says what is wrong with a member of etcd on this machine: where its files
// differ from what [Etcd] returns, what is wrong with its certificates, which members do not
// serve, and that etcd's authentication is off. root is the folder below which the files are, / on a machine.
func CheckEtcd(ctx context.Context, c fabric.Cluster, name, root string) error {
	want, err := Etcd(c, name, EtcdEnvironment, 0)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(root, EtcdEnvironmentFile))
	if err != nil {
		return fmt.Errorf("%w; write what vmfabric render etcd --for %s prints there", err, name)
	}
	has, should := environment(string(content)), environment(want)
	errs := differences(c, should, has)
	if len(errs) == len(should) {
		return fmt.Errorf("%s has nothing of it; write what vmfabric render etcd --for %s prints there", EtcdEnvironmentFile, name)
	}
	unit, err := Etcd(c, name, EtcdUnit, 0)
	if err != nil {
		return err
	}
	switch content, err := os.ReadFile(filepath.Join(root, EtcdUnitFile)); {
	case errors.Is(err, fs.ErrNotExist):
		errs = append(errs, fmt.Errorf("%s is missing; write what --part unit prints there, then: systemctl daemon-reload", EtcdUnitFile))
	case err != nil:
		errs = append(errs, err)
	case string(content) != unit:
		errs = append(errs, fmt.Errorf("%s is not what --part unit prints; write it anew, then: systemctl daemon-reload", EtcdUnitFile))
	}
	conf := *c.Registry.Etcd
	conf.CA, conf.Cert, conf.Key, err = memberFiles(root, has, time.Now())
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	faults, open, err := etcd.Check(ctx, &conf)
	for _, fault := range faults {
		errs = append(errs, errors.New(fault))
	}
	if open {
		errs = append(errs, errors.New("etcd's authentication is off, so that whoever has a certificate of its authority can change every key; run what --part users prints"))
	}
	return errors.Join(append(errs, err)...)
}

// environment reads the lines of a file of environment variables.
func environment(text string) map[string]string {
	is := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if found && !strings.HasPrefix(key, "#") {
			is[key] = strings.Trim(value, `"'`)
		}
	}
	return is
}

// differences lists where variables are not as they should be.
func differences(c fabric.Cluster, want, has map[string]string) (errs []error) {
	counted := regexp.MustCompile("^vmfabric-" + regexp.QuoteMeta(c.Name) + "-[1-9][0-9]*$")
	for _, key := range slices.Sorted(maps.Keys(want)) {
		is, set := has[key]
		switch {
		case !set:
			errs = append(errs, fmt.Errorf("%s: %s is missing; add %s=%s", EtcdEnvironmentFile, key, key, want[key]))
		case is == want[key], key == "ETCD_INITIAL_CLUSTER_TOKEN" && counted.MatchString(is), key == "ETCD_INITIAL_CLUSTER_STATE" && is == "existing":
		default:
			errs = append(errs, fmt.Errorf("%s: %s is %q; it should be %q", EtcdEnvironmentFile, key, is, want[key]))
		}
	}
	return errs
}

// memberFiles reads the certificates of a member, and says what is wrong with them.
func memberFiles(root string, has map[string]string, now time.Time) (authority, cert, key string, err error) {
	text := func(of string) string {
		if has[of] == "" {
			err = errors.Join(err, fmt.Errorf("no certificate to look at without %s", of))
			return ""
		}
		content, bad := os.ReadFile(filepath.Join(root, has[of]))
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w; copy it here from where --part certificates made it", of, bad))
		}
		return string(content)
	}
	authority, cert, key = text("ETCD_TRUSTED_CA_FILE"), text("ETCD_CERT_FILE"), text("ETCD_KEY_FILE")
	if err != nil {
		return "", "", "", err
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return "", "", "", fmt.Errorf("ETCD_CERT_FILE and ETCD_KEY_FILE do not fit (%w); copy two that were made together", err)
	}
	if info, err := os.Stat(filepath.Join(root, has["ETCD_KEY_FILE"])); err == nil && info.Mode().Perm()&0o007 != 0 {
		return "", "", "", fmt.Errorf("%s: everybody can read it (mode %04o); chmod 0600, and chown it to the user etcd", has["ETCD_KEY_FILE"], info.Mode().Perm())
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority))
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			return "", "", "", fmt.Errorf("%s: %w; make a new one with --part certificates", has["ETCD_CERT_FILE"], err)
		}
	}
	if left := pair.Leaf.NotAfter.Sub(now); left < expiresSoon {
		return "", "", "", fmt.Errorf("%s ends at %s; make a new one with --part certificates", has["ETCD_CERT_FILE"], pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return authority, cert, key, nil
}
