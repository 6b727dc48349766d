package metadata

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
)

// Config has the settings of [Serve]; all but Logger are required.
type Config struct {
	Cluster func() *fabric.Cluster // as it is now
	// Listeners accept connections of guests, and bound their number.
	Listeners []net.Listener
	// PortOf returns the port that a connection came in by; ok is false if it is not
	// known whose it is.
	PortOf func(net.Conn) (p fabric.Port, ok bool)
	// Guest returns a guest of this node by its name.
	Guest func(name string) (vm fabric.VM, ok bool)
	// UserData returns what the owner of a guest left for the programs in it.
	UserData func(ctx context.Context, vm fabric.VM) ([]byte, error)
	// Logger logs faults of user data, and of connections; nil: they are not logged.
	Logger *slog.Logger
}

// Limits of a request.
const (
	readWithin  = 5 * time.Second
	writeWithin = 10 * time.Second
	maxHeader   = 8 << 10 // bytes
)

// Serve answers guests until ctx ends. It closes the listeners.
func Serve(ctx context.Context, cfg Config) error {
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	s := &http.Server{
		Handler:     handler{cfg},
		ReadTimeout: readWithin, ReadHeaderTimeout: readWithin, WriteTimeout: writeWithin, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			p, known := cfg.PortOf(c)
			if !known {
				return ctx
			}
			return context.WithValue(ctx, portKey{}, p)
		},
	}
	s.SetKeepAlivesEnabled(false) // each request is one of the port's guest of then
	var g errgroup.Group
	for _, l := range cfg.Listeners {
		g.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	return g.Wait()
}

// portKey is the key of the port in the context of a request.
type portKey struct{}

type handler struct{ Config }

// ServeHTTP implements [http.Handler].
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if code, why := refusal(r); why != "" {
		http.Error(w, why, code)
		return
	}
	p, known := r.Context().Value(portKey{}).(fabric.Port)
	var g Guest
	if known {
		g.VM, known = h.Guest(p.VM)
	}
	if !known {
		later(w, "the node does not know yet whose port this is; ask again")
		return
	}
	if hasUserData(r.URL.Path) {
		var err error
		if g.UserData, err = h.UserData(r.Context(), g.VM); err != nil {
			h.Logger.Warn("user data", "vm", p.VM, "err", err)
			later(w, "the node cannot read it now; ask again, or see the log of its agent")
			return
		}
	}
	body, media, ok := Document(r.URL.Path, g, h.Cluster())
	if !ok {
		http.Error(w, "there is nothing here", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the guest went away
}

func later(w http.ResponseWriter, why string) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, why, http.StatusServiceUnavailable)
}

// refusal says why a request gets no answer, and the code of HTTP; empty: it gets one.
// A program of the guest that can be made to ask for others (a proxy, a web application
// that fetches what it is told to) sends headers that say for whom, or the name of another
// host.
func refusal(r *http.Request) (code int, why string) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, "only GET and HEAD are answered"
	case r.URL.Host != "" || r.URL.Scheme != "":
		return http.StatusForbidden, "this is no proxy"
	case !ownHost(r.Host):
		return http.StatusForbidden, "this is another host; ask " + fabric.Metadata4.String()
	}
	for name := range r.Header {
		if forwards(name) {
			return http.StatusForbidden, "a request that was forwarded is not answered (" + name + ")"
		}
	}
	return 0, ""
}

// ownHost reports whether a request names one of the service's addresses.
func ownHost(host string) bool {
	if ap, err := netip.ParseAddrPort(host); err == nil && ap.Port() == 80 {
		host = ap.Addr().String()
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return err == nil && (a == fabric.Metadata4 || a.WithZone("") == fabric.Metadata6)
}

// forwards reports whether a header, in its canonical form, says that a request was
// forwarded.
func forwards(name string) bool {
	switch name {
	case "Via", "Forwarded", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For", "True-Client-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "Proxy-Connection":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded")
}
