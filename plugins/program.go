package plugins

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Program is a plugin's program and what it is told.
type Program struct {
	Path  string   // with a slash in it, or else in the working directory
	Args  []string // without the program's name
	Env   []string // beside this process's own environment, as KEY=value
	Place Place    // what [Environment] gives in the plugin
}

// String gives the name and the path, as errors have it.
func (p Program) String() string { return fmt.Sprintf("plugin %s (%s)", filepath.Base(p.Path), p.Path) }

// environ is the environment of the plugin, without the handshake's.
func (p Program) environ() []string {
	env := append(os.Environ(), p.Env...)
	if p.Place.Config != "" {
		env = append(env, VariableConfig+"="+p.Place.Config)
	}
	if p.Place.Node != "" {
		env = append(env, VariableNode+"="+p.Place.Node)
	}
	return env
}

// Times bounds what a plugin may take. Zero values stand for the defaults.
type Times struct {
	Start time.Duration // from its start to the end of the handshake; 10 s
	Call  time.Duration // to answer a call, else it is taken to hang; 10 s
	Check time.Duration // between the checks that it is alive; 5 s
	Wait  time.Duration // of a call for a plugin that is being restarted, before it fails; 3 s
}

func (t Times) withDefaults() Times {
	return Times{
		Start: cmp.Or(t.Start, 10*time.Second), Call: cmp.Or(t.Call, 10*time.Second),
		Check: cmp.Or(t.Check, 5*time.Second), Wait: cmp.Or(t.Wait, 3*time.Second),
	}
}

// Option is something optional of a plugin's host.
type Option func(*options)

type options struct {
	log   *slog.Logger
	times Times
	retry bool
}

// WithLogger says where to log what the plugin prints, and what becomes of it.
// The default is nowhere.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// WithTimes bounds what the plugin may take.
func WithTimes(t Times) Option { return func(o *options) { o.times = t } }

// WithRetry has Open succeed although the plugin cannot be started: it is down
// then, [fabric.Diagnoser] says why, and it is tried again like one that has died.
// It is for plugins without which an agent does most of its work.
func WithRetry() Option { return func(o *options) { o.retry = true } }

func newOptions(p Program, opts []Option) options {
	o := options{log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	o.times = o.times.withDefaults()
	o.log = o.log.With("plugin", filepath.Base(p.Path))
	return o
}
