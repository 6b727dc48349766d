package libvirt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/require"
)

// Numbers of libvirt's remote protocol (remote_protocol.x, rpc/virnetprotocol.x).
const (
	program       = 0x20008086
	procOpen      = 1
	procXML       = 14
	procLookup    = 23
	procAuthList  = 66
	procVersion   = 157
	procState     = 212
	procList      = 273
	procJobStats  = 298
	procRegister  = 316
	procLifecycle = 318

	typeReply, typeEvent = 1, 2
	statusOK, statusErr  = 0, 1
	errNoDomain          = 42
	errUnsupported       = 84
	maxRequests          = 5 // of one client at a time; then libvirtd stops reading
)

// daemon speaks as much of libvirtd's protocol as a Source hears.
type daemon struct {
	t    *testing.T
	path string
	wg   sync.WaitGroup

	mu      sync.Mutex
	ln      net.Listener
	clients map[*client]bool
	domains []*domain
	frozen  chan struct{} // closed unless the daemon is stopped, as by SIGSTOP
	calls   map[uint32]int
}

type client struct {
	conn      net.Conn
	write     sync.Mutex
	listening bool
}

type domain struct {
	golibvirt.Domain
	xml           string
	state, reason int32
	hook          chan struct{} // closed when no hook of it runs
	incoming      bool          // a migration arrives
	restored      bool          // from a file
}

func newDaemon(t *testing.T) *daemon {
	d := &daemon{
		t: t, path: filepath.Join(t.TempDir(), "libvirt-sock"), clients: map[*client]bool{},
		frozen: closed(), calls: map[uint32]int{},
	}
	t.Cleanup(func() {
		d.stop()
		d.thaw()
		d.mu.Lock()
		for _, dom := range d.domains {
			open(dom.hook)
		}
		d.mu.Unlock()
		d.wg.Wait()
	})
	return d
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// open closes a channel that may be closed already.
func open(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (d *daemon) start() *daemon {
	os.Remove(d.path)
	ln, err := net.Listen("unix", d.path)
	require.NoError(d.t, err)
	d.mu.Lock()
	d.ln = ln
	d.mu.Unlock()
	d.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c := &client{conn: conn}
			d.mu.Lock()
			d.clients[c] = true
			d.mu.Unlock()
			d.wg.Go(func() { d.serve(c) })
		}
	})
	return d
}

func (d *daemon) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ln != nil {
		d.ln.Close()
	}
	for c := range d.clients {
		c.conn.Close()
	}
}

func (d *daemon) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = make(chan struct{})
}

func (d *daemon) thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	open(d.frozen)
}

// set makes or changes a domain. xml is left as it is when empty.
func (d *daemon) set(name string, state, reason int, xml string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dom := d.find(name)
	if dom == nil {
		dom = &domain{Domain: golibvirt.Domain{Name: name, ID: int32(len(d.domains) + 1)}, hook: closed()}
		copy(dom.UUID[:], fmt.Sprintf("%-16s", fmt.Sprint(len(d.domains), name)))
		d.domains = append(d.domains, dom)
	}
	dom.state, dom.reason = int32(state), int32(reason)
	if xml != "" {
		dom.xml = xml
	}
}

// arrive begins the migration of a domain to here, in a new life of it.
func (d *daemon) arrive(name string, xml string) {
	d.set(name, paused, migrating, xml)
	d.mu.Lock()
	defer d.mu.Unlock()
	dom := d.find(name)
	dom.incoming = true
	dom.ID += 100
}

// restore begins to start a domain from a file.
func (d *daemon) restore(name string, xml string) {
	d.set(name, paused, migrating, xml)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.find(name).restored = true
}

// remove takes a domain away, as a transient one when it stops. Events about
// it can still be told with the returned identity.
func (d *daemon) remove(name string) golibvirt.Domain {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, dom := range d.domains {
		if dom.Name == name {
			d.domains[i] = &domain{hook: closed()} // keeps the number of domains, and so the UUIDs apart
			return dom.Domain
		}
	}
	return golibvirt.Domain{}
}

// hook lets a hook of the domain run until release is called.
func (d *daemon) hook(name string) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dom := d.find(name)
	dom.hook = make(chan struct{})
	hook := dom.hook
	return func() { open(hook) }
}

func (d *daemon) find(name string) *domain {
	for _, dom := range d.domains {
		if dom.Name == name && name != "" {
			return dom
		}
	}
	return nil
}

// event tells all who registered of an event of the domain.
func (d *daemon) event(name string, event golibvirt.DomainEventType, detail int) {
	d.mu.Lock()
	dom := d.find(name).Domain
	d.mu.Unlock()
	d.eventOf(dom, event, detail)
}

func (d *daemon) eventOf(dom golibvirt.Domain, event golibvirt.DomainEventType, detail int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var body xdr
	body.ints(7)
	body.domain(dom)
	body.ints(int32(event), int32(detail))
	for c := range d.clients {
		if c.listening {
			c.send(procLifecycle, typeEvent, 0, statusOK, body.Bytes())
		}
	}
}

// asked gives how often a procedure was called.
func (d *daemon) asked(proc uint32) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[proc]
}

func (d *daemon) listeners() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.clients {
		if c.listening {
			n++
		}
	}
	return n
}

type header struct {
	Length, Program, Version, Procedure, Type uint32
	Serial                                    int32
	Status                                    uint32
}

func (d *daemon) serve(c *client) {
	defer func() {
		c.conn.Close()
		d.mu.Lock()
		delete(d.clients, c)
		d.mu.Unlock()
	}()
	requests := make(chan struct{}, maxRequests)
	for {
		requests <- struct{}{}
		var h header
		if err := binary.Read(c.conn, binary.BigEndian, &h); err != nil {
			return
		}
		body := make([]byte, h.Length-28)
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return
		}
		d.mu.Lock()
		frozen := d.frozen
		d.calls[h.Procedure]++
		d.mu.Unlock()
		<-frozen
		d.wg.Go(func() {
			defer func() { <-requests }()
			status, reply := d.answer(c, h.Procedure, body)
			c.send(h.Procedure, typeReply, h.Serial, status, reply)
		})
	}
}

func (d *daemon) answer(c *client, proc uint32, body []byte) (status uint32, reply []byte) {
	var out xdr
	var dom *domain
	switch proc {
	case procXML, procState, procJobStats:
		length := binary.BigEndian.Uint32(body)
		name := string(body[4 : 4+length])
		uuid := body[4+(length+3)/4*4:][:16]
		d.mu.Lock()
		dom = d.find(name)
		d.mu.Unlock()
		if dom == nil || !bytes.Equal(dom.UUID[:], uuid) {
			return failure(errNoDomain, "Domain not found")
		}
		d.mu.Lock()
		hook := dom.hook
		d.mu.Unlock()
		<-hook
	case procList:
		d.mu.Lock()
		domains := append([]*domain(nil), d.domains...)
		d.mu.Unlock()
		for _, dom := range domains {
			<-dom.hook
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch proc {
	case procAuthList:
		out.ints(1, 0)
	case procVersion:
		out.ints(0, 9_000_000)
	case procRegister:
		c.listening = true
		out.ints(7)
	case procXML:
		out.text(dom.xml)
	case procState:
		out.ints(dom.state, dom.reason)
	case procJobStats:
		if dom.incoming {
			return failure(errUnsupported, "Operation not supported: migration statistics are available only on the source host")
		}
		if dom.restored {
			out.ints(0, 0) // no job that has statistics
			break
		}
		out.ints(2, 1)
		out.text("operation")
		out.ints(1, 5)
	case procLookup:
		if dom = d.find(string(body[4 : 4+binary.BigEndian.Uint32(body)])); dom == nil {
			return failure(errNoDomain, "Domain not found")
		}
		out.domain(dom.Domain)
	case procList:
		var active []*domain
		for _, dom := range d.domains {
			if dom.Name != "" && dom.state != int32(golibvirt.DomainShutoff) {
				active = append(active, dom)
			}
		}
		out.ints(int32(len(active)))
		for _, dom := range active {
			out.domain(dom.Domain)
		}
		out.ints(int32(len(active)))
	}
	return statusOK, out.Bytes()
}

func failure(code int32, text string) (status uint32, reply []byte) {
	var out xdr
	out.ints(code, 10, 1)
	out.text(text)
	out.ints(2, 0, 0, 0, 0, 0, 0, 0)
	return statusErr, out.Bytes()
}

func (c *client) send(proc, kind uint32, serial int32, status uint32, body []byte) {
	c.write.Lock()
	defer c.write.Unlock()
	var out bytes.Buffer
	binary.Write(&out, binary.BigEndian, header{uint32(28 + len(body)), program, 1, proc, kind, serial, status})
	out.Write(body)
	c.conn.Write(out.Bytes())
}

// xdr is what is written in RFC 4506.
type xdr struct{ bytes.Buffer }

func (x *xdr) ints(values ...int32) { binary.Write(x, binary.BigEndian, values) }

func (x *xdr) text(s string) {
	x.ints(int32(len(s)))
	x.WriteString(s)
	x.Write(make([]byte, (4-len(s)%4)%4))
}

func (x *xdr) domain(d golibvirt.Domain) {
	x.text(d.Name)
	x.Write(d.UUID[:])
	x.ints(d.ID)
}
