package lxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"

	"github.com/coder/websocket"

	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

const (
	maxAnswer = 256 << 20 // bytes; an instance has some 3,000
	maxEvent  = 1 << 20
)

// apiError is an error that the daemon answers.
type apiError struct {
	code int // the HTTP status
	text string
}

func (e *apiError) Error() string { return oneline.Of(e.text) }

func hasCode(err error, code int) bool {
	var e *apiError
	return errors.As(err, &e) && e.code == code
}

// client sends requests to the daemon behind one socket.
type client struct {
	dialect
	path string
	http http.Client
}

func newClient(d dialect, path string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	// One connection a request: a local one costs little, and none is left open.
	return &client{dialect: d, path: path, http: http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
	}}
}

func (c *client) url(path string, query url.Values) string {
	u := url.URL{Scheme: "http", Host: c.name, Path: c.api + path, RawQuery: query.Encode()}
	return u.String()
}

// get requests a path below the API's.
func get[T any](ctx context.Context, c *client, path string, query url.Values) (metadata T, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(path, query), nil)
	if err != nil {
		return metadata, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return metadata, reason(err)
	}
	defer resp.Body.Close()
	return decode[T](resp)
}

func decode[T any](resp *http.Response) (metadata T, err error) {
	var answer struct {
		Type     string
		Error    string
		Code     int `json:"error_code"`
		Metadata T
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil {
		if resp.StatusCode != http.StatusOK {
			return metadata, &apiError{resp.StatusCode, resp.Status}
		}
		return metadata, fmt.Errorf("its answer cannot be read: %w", reason(err))
	}
	if answer.Type == "error" || resp.StatusCode != http.StatusOK {
		return metadata, &apiError{max(answer.Code, resp.StatusCode), answer.Error}
	}
	return answer.Metadata, nil
}

// server is the daemon's description of itself.
type server struct {
	Extensions  []string `json:"api_extensions"`
	Environment struct {
		Product   string `json:"server"` // lxd or incus
		Name      string `json:"server_name"`
		Clustered bool   `json:"server_clustered"`
	}
}

func (s server) has(extension string) bool { return slices.Contains(s.Extensions, extension) }

// holds reports whether the location of an instance or event is this member.
// Without a cluster the location is "none"; a daemon that forms a cluster changes
// it.
func (s server) holds(location string) bool {
	return !s.Environment.Clustered || location == "" || location == "none" || location == s.Environment.Name
}

func (c *client) server(ctx context.Context) (server, error) { return get[server](ctx, c, "", nil) }

// projects lists the names of all projects.
func (c *client) projects(ctx context.Context) ([]string, error) {
	urls, err := get[[]string](ctx, c, "/projects", nil)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(urls))
	for _, u := range urls {
		name, err := url.PathUnescape(path.Base(u))
		if err != nil {
			return nil, fmt.Errorf("project %q: %w", u, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// instance reads an instance.
func (c *client) instance(ctx context.Context, k key) (instance, error) {
	i, err := get[instance](ctx, c, "/instances/"+k.name, url.Values{"project": {k.project}})
	i.Project = k.project // an old daemon does not send it
	return i, err
}

// instances lists the instances of all projects; in a cluster, of all members.
//
// With recursion=2 the daemon would also look into every running container, which
// takes it a hundred times as long (0.1 s each, seen on LXD 5.0).
func (c *client) instances(ctx context.Context, of server) ([]instance, error) {
	if of.has("instance_all_projects") {
		return get[[]instance](ctx, c, "/instances", url.Values{"recursion": {"1"}, "all-projects": {"true"}})
	}
	projects, err := c.projects(ctx)
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, p := range projects {
		list, err := get[[]instance](ctx, c, "/instances", url.Values{"recursion": {"1"}, "project": {p}})
		if err != nil {
			return nil, err
		}
		for _, i := range list {
			i.Project = p
			all = append(all, i)
		}
	}
	return all, nil
}

// events subscribes to the lifecycle events and operations of all projects. A daemon that does not
// send the project of an event (before LXD 4.0.9) selects all projects by another
// parameter.
func (c *client) events(ctx context.Context, of server) (*websocket.Conn, error) {
	query := url.Values{"type": {"lifecycle,operation"}, "all-projects": {"true"}}
	if !of.has("event_project") {
		query = url.Values{"type": {"lifecycle,operation"}, "project": {"*"}}
	}
	ws, resp, err := websocket.Dial(ctx, c.url("/events", query), &websocket.DialOptions{HTTPClient: &c.http})
	switch {
	case err == nil:
		ws.SetReadLimit(maxEvent)
		return ws, nil
	case resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
		if _, refused := decode[any](resp); refused != nil {
			return nil, refused
		}
	}
	return nil, reason(err)
}

// reason shortens an error of a connection to its cause. reason of nil is nil.
func reason(err error) error {
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		return hypervisor.ErrClosed
	}
	return hypervisor.Reason(err)
}
