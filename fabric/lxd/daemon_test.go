package lxd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// daemon speaks as much of LXD's API as a Source asks for.
type daemon struct {
	t    *testing.T
	path string
	srv  *httptest.Server
	wg   sync.WaitGroup

	mu         sync.Mutex
	instances  map[key]instance
	projects   []string
	extensions []string
	product    string // that it says it is; empty: it does not
	name       string // of the member; empty without a cluster
	failing    map[string]int
	gate       chan struct{}       // closed unless requests wait
	hung       bool                // nothing is answered, as after SIGSTOP
	calls      map[string]int      // by path and query
	busy, most int                 // requests about one instance at a time
	listeners  map[*listener]bool  // of events
	queries    map[string]struct{} // with which they came
}

type listener struct {
	ws     *websocket.Conn
	events chan []byte
}

func newDaemon(t *testing.T) *daemon {
	d := &daemon{
		t: t, path: filepath.Join(t.TempDir(), "unix.socket"), instances: map[key]instance{}, projects: []string{"default"},
		extensions: []string{"instance_all_projects", "event_project"}, failing: map[string]int{}, gate: closed(),
		calls: map[string]int{}, listeners: map[*listener]bool{}, queries: map[string]struct{}{},
	}
	t.Cleanup(func() {
		d.thaw()
		d.stop()
		d.wg.Wait()
	})
	return d
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (d *daemon) start() *daemon {
	os.Remove(d.path)
	ln, err := net.Listen("unix", d.path)
	require.NoError(d.t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as one that is killed
	mux := http.NewServeMux()
	mux.HandleFunc("GET /1.0", d.serveServer)
	mux.HandleFunc("GET /1.0/projects", d.serveProjects)
	mux.HandleFunc("GET /1.0/instances", d.serveList)
	mux.HandleFunc("GET /1.0/instances/{name}", d.serveInstance)
	mux.HandleFunc("GET /1.0/events", d.serveEvents)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.calls[r.URL.String()]++
		code, hung, gate := d.failing[r.URL.Path], d.hung, d.gate
		d.mu.Unlock()
		if hung {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		if code != 0 {
			d.refuse(w, code, "it cannot")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	d.mu.Lock()
	d.srv = srv
	d.mu.Unlock()
	return d
}

func (d *daemon) stop() {
	d.mu.Lock()
	srv := d.srv
	d.srv = nil
	listeners := slices.Collect(maps.Keys(d.listeners))
	d.mu.Unlock()
	for _, l := range listeners {
		l.ws.CloseNow() // waits for the answer to a ping, which takes the lock
	}
	if srv != nil {
		srv.CloseClientConnections()
		srv.Close()
	}
}

// freeze stops all answers, as SIGSTOP does.
func (d *daemon) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hung, d.gate = true, make(chan struct{})
}

// hold stops the answers about single instances.
func (d *daemon) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = make(chan struct{})
}

func (d *daemon) thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hung = false
	select {
	case <-d.gate:
	default:
		close(d.gate)
	}
}

// fail has requests to a path refused with a code, or not with zero.
func (d *daemon) fail(path string, code int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing[path] = code
}

// cluster makes the daemon the member of a cluster, of that name.
func (d *daemon) cluster(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.name = name
}

// set makes or changes an instance. What it does not say of itself is usual.
func (d *daemon) set(i instance) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i.Project, i.Type = cmp.Or(i.Project, "default"), cmp.Or(i.Type, "container")
	i.Location = cmp.Or(i.Location, d.name, "none")
	i.ExpandedConfig = maps.Clone(i.ExpandedConfig)
	if i.ExpandedConfig != nil {
		i.ExpandedConfig["volatile.uuid"] = "uuid of " + i.Name
	}
	if !slices.Contains(d.projects, i.Project) {
		d.projects = append(d.projects, i.Project)
	}
	d.instances[i.key()] = i
}

func (d *daemon) code(name string, code int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := key{"default", name}
	i := d.instances[k]
	i.Code = code
	d.instances[k] = i
}

func (d *daemon) remove(k key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.instances, k)
}

// tell sends an event about an instance of the default project.
func (d *daemon) tell(action, name string) {
	d.send(map[string]any{"project": "default"}, action, "/1.0/instances/"+name, nil)
}

// send sends an event with these additions to all who listen.
func (d *daemon) send(more map[string]any, action, source string, about map[string]any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := map[string]any{
		"type": "lifecycle", "timestamp": "2026-11-22T22:19:27.1Z", "location": cmp.Or(d.name, "none"),
		"metadata": map[string]any{"action": action, "source": source, "context": about},
	}
	maps.Copy(e, more)
	message, err := json.Marshal(e)
	require.NoError(d.t, err)
	for l := range d.listeners {
		l.events <- message
	}
}

// cut ends all subscriptions in the middle of a message.
func (d *daemon) cut() {
	d.mu.Lock()
	listeners := slices.Collect(maps.Keys(d.listeners))
	d.mu.Unlock()
	for _, l := range listeners {
		w, err := l.ws.Writer(context.Background(), websocket.MessageText)
		require.NoError(d.t, err)
		_, _ = w.Write([]byte(`{"type":"lifecycle","project":"` + strings.Repeat("a", 64<<10)))
		l.ws.CloseNow()
	}
}

// asked gives how often something was asked for, by its path with the query.
func (d *daemon) asked(prefix string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for url, times := range d.calls {
		if strings.HasPrefix(url, prefix) {
			n += times
		}
	}
	return n
}

// subscriptions gives the queries of all who ever listened.
func (d *daemon) subscriptions() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.queries))
}

func (d *daemon) answer(w http.ResponseWriter, metadata any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0, "error": "", "metadata": metadata,
	})
}

func (d *daemon) refuse(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "error", "status": "", "status_code": 0, "error_code": code, "error": text, "metadata": nil})
}

func (d *daemon) serveServer(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer(w, map[string]any{
		"api_extensions": d.extensions,
		"environment":    map[string]any{"server": d.product, "server_name": cmp.Or(d.name, "machine"), "server_clustered": d.name != ""},
	})
}

func (d *daemon) serveProjects(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var urls []string
	for _, p := range d.projects {
		urls = append(urls, "/1.0/projects/"+p)
	}
	d.answer(w, urls)
}

func (d *daemon) serveList(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := r.URL.Query()
	all, one := q.Get("all-projects") == "true", q.Get("project")
	if q.Get("recursion") != "1" || all && (one != "" || !slices.Contains(d.extensions, "instance_all_projects")) || !all && one == "" {
		d.refuse(w, http.StatusBadRequest, "Bad query "+r.URL.RawQuery)
		return
	}
	list := []instance{}
	for _, i := range d.instances {
		if all || i.Project == one {
			list = append(list, d.shown(i))
		}
	}
	d.answer(w, list)
}

func (d *daemon) serveInstance(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.busy++
	d.most = max(d.most, d.busy)
	gate := d.gate
	d.mu.Unlock()
	select {
	case <-gate:
	case <-r.Context().Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy--
	i, ok := d.instances[key{r.URL.Query().Get("project"), r.PathValue("name")}]
	if !ok {
		d.refuse(w, http.StatusNotFound, "Instance not found")
		return
	}
	d.answer(w, d.shown(i))
}

// shown is how the daemon writes an instance. An old one leaves the project out.
func (d *daemon) shown(i instance) instance {
	if !slices.Contains(d.extensions, "instance_all_projects") {
		i.Project = ""
	}
	return i
}

func (d *daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	d.mu.Lock()
	modern := slices.Contains(d.extensions, "event_project")
	d.mu.Unlock()
	if modern && q.Get("project") != "" || !modern && q.Has("all-projects") {
		d.refuse(w, http.StatusBadRequest, "Bad query "+r.URL.RawQuery)
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{OnPingReceived: func(context.Context, []byte) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return !d.hung
	}})
	if err != nil {
		return
	}
	l := &listener{ws, make(chan []byte, 4096)}
	d.mu.Lock()
	d.listeners[l] = true
	d.queries[r.URL.RawQuery] = struct{}{}
	d.mu.Unlock()
	d.wg.Add(1)
	defer d.wg.Done()
	defer func() {
		d.mu.Lock()
		delete(d.listeners, l)
		d.mu.Unlock()
		ws.CloseNow()
	}()
	ctx := ws.CloseRead(context.Background())
	for {
		select {
		case <-ctx.Done():
			return
		case message := <-l.events:
			if ws.Write(ctx, websocket.MessageText, message) != nil {
				return
			}
		}
	}
}

// p2p is an instance of ours that runs, with a NIC that LXD makes. Its
// addresses end in n.
func p2p(name string, n int) instance {
	return ours(name, n, device{"type": "nic", "nictype": "p2p", "host_name": name + "_net0", "name": "eth0"})
}

// physical is one with a NIC that the fabric makes.
func physical(name string, n int) instance {
	return ours(name, n, device{"type": "nic", "nictype": "physical", "parent": name + "_peer0", "name": "eth0"})
}

func ours(name string, n int, nic device) instance {
	config := map[string]string{"user.vmfabric.net0.addresses": fmt.Sprintf("203.0.113.%d, 2001:db8:100::%d", n, n)}
	devices := map[string]device{"eth0": nic, "root": {"type": "disk", "path": "/", "pool": "default"}}
	return instance{Name: name, Code: codeRunning, Config: config, Devices: devices, ExpandedConfig: config, ExpandedDevices: devices}
}

func foreign(name string) instance {
	return instance{Name: name, Code: codeRunning, ExpandedConfig: map[string]string{"user.other": "x"}}
}
