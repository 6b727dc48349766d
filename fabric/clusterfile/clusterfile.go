// Package clusterfile reads the cluster file, /etc/vmfabric/cluster.yaml, into a
// valid [fabric.Cluster]. The error names the file, line and key of each mistake,
// for all mistakes of a file together.
//
// The file is one YAML mapping of plain values, lists and mappings; anchors,
// aliases, tags and directives are refused. A key without a value counts as absent
// if it takes a list or a mapping, and is a mistake otherwise.
package clusterfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/trusted"
)

// Option changes what [Load] and [Parse] do.
type Option func(*decoder)

// WithoutKey does not read the file with the cluster's key, for a program that is
// no agent and may not have it, such as a reflector. [fabric.Cluster].Key is empty
// then.
func WithoutKey() Option { return func(d *decoder) { d.withoutKey = true } }

// Load reads the cluster file at path, and the key and password files that it
// names. It refuses files that another user than root and this one could change. It
// has no side effects. The error is that of [Parse]; if it comes from the operating
// system, it matches its cause, such as [fs.ErrNotExist].
func Load(path string, opts ...Option) (fabric.Cluster, error) {
	data, err := read(path)
	if err != nil {
		return fabric.Cluster{}, join([]*Error{{File: path, Text: explain(err), cause: err}})
	}
	return Parse(path, data, opts...)
}

// Parse reads a cluster file from memory. The name is that of the file in errors;
// key and password files with a relative path are in its directory. The cluster
// comes with its defaults and passes [fabric.Cluster.Validate].
//
// The error joins one [*Error] for each mistake, in the order of the lines. If
// there are more than 20, it has the first 20 and one that counts the rest.
func Parse(name string, data []byte, opts ...Option) (fabric.Cluster, error) {
	root, bad := document(data)
	if bad != nil {
		bad.File = name
		return fabric.Cluster{}, join([]*Error{bad})
	}
	d := newDecoder(name, root)
	for _, o := range opts {
		o(d)
	}
	var c fabric.Cluster
	d.cluster(&c)(d, "", root)
	c = c.WithDefaults()
	for _, p := range c.Validate() {
		if !d.follows(p.Path) {
			d.report(p.Path, p.Text)
		}
	}
	if len(d.errs) > 0 {
		return fabric.Cluster{}, join(d.errs)
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	if err := trusted.Check(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte over the limit tells Parse that the file is too long.
	return io.ReadAll(io.LimitReader(f, maxBytes+1))
}

// explain returns the reason and the way out of an error of read.
func explain(err error) string {
	if bad, ok := errors.AsType[*trusted.Error](err); ok {
		return bad.Text()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "no such file; create it, the same on every node, with the keys name, asn, community, gateway, pools, reflectors and nodes"
	}
	return fmt.Sprintf("%v; it must be a file that this user can read", reason(err))
}

// reason returns the operating system's error without the path, which this
// package's errors have themselves.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
