package domxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/vmfabric/vmfabric/fabric"
)

// MaxBytes is the longest XML that Parse reads. libvirt's own protocol carries 4
// MiB (REMOTE_STRING_MAX).
const MaxBytes = 16 << 20

const (
	maxDepth = 256 // of elements, as in libxml2, so no domain of libvirt is deeper
	maxText  = 4096
	maxRules = 64 << 10 // bytes of a firewall's rules of one direction
)

// Parse reads the XML of a domain, up to the end of its root element. A domain
// without <fabric:vm> is no error. Anything unknown in <fabric:vm> is one, so that
// a slip of the pen does not cost a guest an address.
func Parse(r io.Reader) (Domain, error) { return parse(r, MaxBytes) }

func parse(r io.Reader, most int64) (Domain, error) {
	limited := &io.LimitedReader{R: r, N: most + 1}
	p := parser{dec: xml.NewDecoder(limited)}
	err := p.document()
	var syntax *xml.SyntaxError
	switch {
	case err != nil && limited.N == 0:
		err = fmt.Errorf("the XML is longer than %d bytes; give what virsh dumpxml prints", most)
	case errors.As(err, &syntax):
		err = fmt.Errorf("line %d of the XML: %s; check it with virt-xml-validate", syntax.Line, syntax.Msg)
	case err == nil && p.dom.Ours && p.dom.Name == "":
		err = errors.New("the XML has no <name>; give the domain one")
	}
	if err != nil {
		if p.dom.Name == "" {
			return Domain{}, fmt.Errorf("domain: %w", err)
		}
		return Domain{}, fmt.Errorf("domain %s: %w", label(p.dom.Name), err)
	}
	return p.dom, nil
}

type parser struct {
	dec   *xml.Decoder
	depth int
	dom   Domain
}

func (p *parser) document() error {
	for {
		token, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			return errors.New("the XML has no <domain>; give what virsh dumpxml prints")
		}
		if err != nil {
			return err
		}
		root, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if root.Name != (xml.Name{Local: "domain"}) {
			return fmt.Errorf("the XML is of a <%.40s>; give that of a <domain>", root.Name.Local)
		}
		// libvirt writes an id only if the domain runs.
		p.dom.ID, _ = strconv.Atoi(attr(root, "id"))
		return p.domain()
	}
}

func (p *parser) domain() error {
	return p.children(func(e xml.StartElement) (err error) {
		switch e.Name {
		case xml.Name{Local: "name"}:
			p.dom.Name, err = p.text(e)
		case xml.Name{Local: "uuid"}:
			p.dom.UUID, err = p.text(e)
		case xml.Name{Local: "metadata"}:
			err = p.children(p.metadata, nil)
		case xml.Name{Local: "devices"}:
			err = p.children(p.device, nil)
		default:
			err = p.skip()
		}
		return err
	}, nil)
}

func (p *parser) metadata(e xml.StartElement) error {
	switch {
	case e.Name == xml.Name{Space: Namespace, Local: "vm"}:
		if p.dom.Ours {
			return errors.New("<fabric:vm> is given twice; put all <fabric:nic> into one")
		}
		p.dom.Ours = true
		if err := p.switches(e); err != nil {
			return err
		}
		e.Attr = nil // switches has read them
		if err := p.strict(e, p.part, "nic", "firewall"); err != nil {
			return err
		}
		p.dom.Resolve = len(p.dom.NICs) == 0
		return nil
	case e.Name.Space == Namespace:
		return fmt.Errorf("<metadata> has <fabric:%.40s>; it takes <fabric:vm>", e.Name.Local)
	case e.Name.Local == "vm" && strings.HasPrefix(e.Name.Space, family):
		return fmt.Errorf("<vm> is in the namespace %.60q; write xmlns:fabric=%q", e.Name.Space, Namespace)
	}
	return p.skip()
}

// part reads an element of <fabric:vm>.
func (p *parser) part(e xml.StartElement) error {
	if e.Name.Local == "firewall" {
		return p.firewall(e)
	}
	return p.nic(e)
}

// firewall reads the <fabric:firewall>: rules of each direction, as [fabric.ParseFilter]
// reads them.
func (p *parser) firewall(e xml.StartElement) error {
	if p.dom.Firewall != nil {
		return errors.New("<fabric:firewall> is given twice; put all rules into one")
	}
	w, given := &fabric.Firewall{}, map[string]bool{}
	p.dom.Firewall = w
	for _, a := range attributes(e) {
		switch {
		case a.Name != xml.Name{Local: "stateful"}:
			return fmt.Errorf("<fabric:firewall> has the attribute %.40q; it takes stateful=\"yes\", write rules as elements", a.Name.Local)
		case a.Value != "yes" && a.Value != "no":
			return fmt.Errorf("<fabric:firewall> has stateful=%.40q; write yes or no", a.Value)
		}
		w.Stateful = a.Value == "yes"
	}
	e.Attr = nil // they were read
	err := p.strict(e, func(e xml.StartElement) error {
		name := e.Name.Local
		if given[name] {
			return fmt.Errorf("<fabric:%s> is given twice; put all rules into one", name)
		}
		given[name] = true
		if err := bare(e); err != nil {
			return err
		}
		rules, err := p.textOf(e, maxRules)
		if err != nil {
			return err
		}
		to := map[string]*fabric.Filter{"ingress": &w.Ingress, "egress": &w.Egress}[name]
		*to, err = fabric.ParseFilter(rules, fabric.Direction(name))
		return err
	}, "ingress", "egress")
	if err != nil {
		return fmt.Errorf("<fabric:firewall>: %w", err)
	}
	return w.Validate()
}

// switches reads the attributes of <fabric:vm>: dhcp, ra and metadata, each yes (the default) or
// no, and isolate, which is no by default.
func (p *parser) switches(e xml.StartElement) error {
	given := map[string]bool{}
	for _, a := range attributes(e) {
		is := map[xml.Name]*bool{{Local: "dhcp"}: &p.dom.NoDHCP, {Local: "ra"}: &p.dom.NoRA, {Local: "metadata"}: &p.dom.NoMetadata, {Local: "isolate"}: &p.dom.Isolated}[a.Name]
		switch {
		case is == nil:
			return fmt.Errorf("<fabric:vm> has the attribute %.40q; it takes dhcp=\"no\", ra=\"no\", metadata=\"no\" and isolate=\"yes\", write other values as elements", a.Name.Local)
		case given[a.Name.Local]:
			return fmt.Errorf("<fabric:vm> has the attribute %s twice; remove one", a.Name.Local)
		case a.Value != "yes" && a.Value != "no":
			return fmt.Errorf("<fabric:vm> has %s=%.40q; write yes or no", a.Name.Local, a.Value)
		}
		given[a.Name.Local], *is = true, a.Value == map[bool]string{true: "yes", false: "no"}[is == &p.dom.Isolated]
	}
	return nil
}

func (p *parser) nic(e xml.StartElement) error {
	n := len(p.dom.NICs)
	if n == fabric.MaxNICs {
		return fmt.Errorf("<fabric:vm> has more than %d <fabric:nic>; a guest has at most that many", fabric.MaxNICs)
	}
	var nic NIC
	err := p.strict(e, func(e xml.StartElement) (err error) {
		switch e.Name.Local {
		case "address":
			err = p.address(e, &nic)
		case "route":
			nic.Routes, err = value(p, e, nic.Routes, parseRoute)
		}
		return err
	}, "address", "route")
	switch {
	case err != nil || len(nic.Addresses)+len(nic.Pools) > 0:
	case len(nic.Routes) > 0:
		err = fmt.Errorf("no <fabric:address> for its <fabric:route>; add one, or <fabric:address pool=%q/> for one of the pools", fabric.AutoPool)
	default:
		nic.Pools = []string{fabric.AutoPool}
	}
	if err != nil {
		return fmt.Errorf("<fabric:nic> %d: %w", n, err)
	}
	p.dom.NICs = append(p.dom.NICs, nic)
	return nil
}

// address reads a <fabric:address>: an address, or the pool of one.
func (p *parser) address(e xml.StartElement, nic *NIC) (err error) {
	if len(nic.Addresses)+len(nic.Pools) == fabric.MaxAddresses {
		return tooMany(e)
	}
	pool, given, err := poolOf(e)
	if err != nil {
		return err
	}
	if !given {
		nic.Addresses, err = value(p, e, nic.Addresses, parseAddress)
		return err
	}
	s, err := p.text(e)
	if err != nil {
		return err
	}
	if s = strings.TrimSpace(s); s != "" {
		return fmt.Errorf("<fabric:address> has both pool=%.60q and the text %.60q; keep one of them, or write two elements", pool, s)
	}
	if err := fabric.ValidatePool(pool); err != nil {
		return fmt.Errorf("<fabric:address pool=%.60q/>: %w", pool, err)
	}
	nic.Pools = append(nic.Pools, pool)
	return nil
}

// poolOf returns the attribute pool of a <fabric:address>, the only one that it takes.
func poolOf(e xml.StartElement) (pool string, given bool, err error) {
	for _, a := range attributes(e) {
		if a.Name != (xml.Name{Local: "pool"}) {
			return "", false, fmt.Errorf("<fabric:address> has the attribute %.40q; it takes pool=\"NAME\" alone, or no attribute and an address as text", a.Name.Local)
		}
		if given {
			return "", false, errors.New("<fabric:address> has the attribute pool twice; write an element for each")
		}
		pool, given = a.Value, true
	}
	return pool, given, nil
}

func tooMany(e xml.StartElement) error {
	return fmt.Errorf("more than %d <fabric:%s>; a NIC takes at most that many", fabric.MaxAddresses, e.Name.Local)
}

// value appends the element's value to the earlier ones.
func value[T any](p *parser, e xml.StartElement, values []T, parse func(string) (T, error)) ([]T, error) {
	name := e.Name.Local
	if len(values) == fabric.MaxAddresses {
		return nil, tooMany(e)
	}
	if err := bare(e); err != nil {
		return nil, err
	}
	s, err := p.text(e)
	if err != nil {
		return nil, err
	}
	v, err := parse(strings.TrimSpace(s))
	if err != nil {
		return nil, fmt.Errorf("<fabric:%s> %w", name, err)
	}
	return append(values, v), nil
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case s == "":
		return a, fmt.Errorf("is empty; write an address, or <fabric:address pool=%q/> for one of the pools", fabric.AutoPool)
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Errorf("%.60q is a prefix; write the address alone, and a prefix behind the guest as <fabric:route>", s)
	case err != nil:
		return a, fmt.Errorf("%.60q is not an IP address; write one such as 203.0.113.10 or 2001:db8:100::10", s)
	case a.Zone() != "":
		return a, fmt.Errorf("%.60q has a zone, which means nothing outside one host; write an address of a pool", s)
	case a.Is4In6():
		return a, fmt.Errorf("%.60q is an IPv4 address written as IPv6; write %s", s, a.Unmap())
	}
	return a, nil
}

func parseRoute(s string) (netip.Prefix, error) {
	r, err := netip.ParsePrefix(s)
	if err != nil {
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" && !a.Is4In6() {
			return r, fmt.Errorf("%q has no length; write %s", s, fabric.HostPrefix(a))
		}
		return r, fmt.Errorf("%.60q is not a prefix; write one such as 198.51.100.0/29 or 2001:db8:200::/56", s)
	}
	if r.Addr().Is4In6() {
		return r, fmt.Errorf("%.60q is an IPv4 prefix written as IPv6; write it as one such as 198.51.100.0/29", s)
	}
	return r, nil
}

// device reads an <interface>. libvirt has checked its values, so device treats one
// that it cannot read as not given.
func (p *parser) device(e xml.StartElement) error {
	if e.Name != (xml.Name{Local: "interface"}) {
		return p.skip()
	}
	i := Interface{Type: attr(e, "type"), Managed: true}
	err := p.children(func(e xml.StartElement) error {
		switch e.Name {
		case xml.Name{Local: "mac"}:
			i.MAC, _ = fabric.ParseMAC(attr(e, "address"))
		case xml.Name{Local: "target"}:
			i.Dev, i.Managed = attr(e, "dev"), attr(e, "managed") != "no"
		case xml.Name{Local: "driver"}:
			i.Queues = positive(attr(e, "queues"))
		case xml.Name{Local: "mtu"}:
			i.MTU = positive(attr(e, "size"))
		}
		return p.skip()
	}, nil)
	p.dom.Interfaces = append(p.dom.Interfaces, i)
	return err
}

func positive(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return max(n, 0)
}

// children passes each child of the element that was just entered to element, which
// must read it to its end, and the text, in pieces, to text.
func (p *parser) children(element func(xml.StartElement) error, text func([]byte) error) error {
	if p.depth++; p.depth > maxDepth {
		return fmt.Errorf("elements are nested deeper than %d", maxDepth)
	}
	for {
		token, err := p.dec.Token()
		if err == nil {
			switch t := token.(type) {
			case xml.StartElement:
				err = element(t)
			case xml.CharData:
				if text != nil {
					err = text(t)
				}
			case xml.EndElement:
				p.depth--
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// strict is children for an element of the fabric: it takes no attributes, no text
// and no elements but the named ones.
func (p *parser) strict(parent xml.StartElement, element func(xml.StartElement) error, names ...string) error {
	if err := bare(parent); err != nil {
		return err
	}
	takes := "<fabric:" + strings.Join(names, "> and <fabric:") + ">"
	return p.children(func(e xml.StartElement) error {
		switch {
		case e.Name.Space != Namespace:
			return fmt.Errorf("<%.40s> in <fabric:%s> is not of the namespace %s; it takes %s",
				e.Name.Local, parent.Name.Local, Namespace, takes)
		case !slices.Contains(names, e.Name.Local):
			return fmt.Errorf("<fabric:%s> has <fabric:%.40s>; it takes %s", parent.Name.Local, e.Name.Local, takes)
		}
		return element(e)
	}, func(text []byte) error {
		if text = bytes.TrimSpace(text); len(text) > 0 {
			return fmt.Errorf("<fabric:%s> has the text %.60q; it takes %s", parent.Name.Local, text, takes)
		}
		return nil
	})
}

// bare refuses attributes on an element of the fabric.
func bare(e xml.StartElement) error {
	if all := attributes(e); len(all) > 0 {
		return fmt.Errorf("<fabric:%s> has the attribute %.40q; it takes none, write values as elements", e.Name.Local, all[0].Name.Local)
	}
	return nil
}

// attributes lists an element's attributes without the declarations of namespaces.
func attributes(e xml.StartElement) []xml.Attr {
	return slices.DeleteFunc(slices.Clone(e.Attr), func(a xml.Attr) bool { return a.Name.Space == "xmlns" || a.Name.Local == "xmlns" })
}

// text reads an element that has only text.
func (p *parser) text(e xml.StartElement) (string, error) { return p.textOf(e, maxText) }

// textOf is text with another limit, in bytes.
func (p *parser) textOf(e xml.StartElement, most int) (string, error) {
	var all []byte
	err := p.children(func(child xml.StartElement) error {
		return fmt.Errorf("<%s> has <%.40s>; it takes text alone", e.Name.Local, child.Name.Local)
	}, func(piece []byte) error {
		if all = append(all, piece...); len(all) > most {
			return fmt.Errorf("<%s> is longer than %d bytes; shorten it", e.Name.Local, most)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return string(all), nil
}

func (p *parser) skip() error {
	return p.children(func(xml.StartElement) error { return p.skip() }, nil)
}

func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name == (xml.Name{Local: name}) {
			return a.Value
		}
	}
	return ""
}

// label returns a domain's name, quoted if it would not stay on one line.
func label(name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) || len(name) > 200 {
		return fmt.Sprintf("%.200q", name)
	}
	return name
}
