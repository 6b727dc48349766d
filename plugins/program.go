package plugins

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Program is a plugin's program, with its arguments and its environment.
type Program struct {
	Path  string   // without a slash: in the working directory
	Args  []string // without the program's name
	Env   []string // beside this process's own environment, as KEY=value
	Place Place    // the result of [Environment] in the plugin
}

// String returns the name and the path, as errors have it.
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
	Call  time.Duration // to answer a call; after that it counts as hanging; 10 s
	Check time.Duration // between the checks that it is alive; 5 s
	Wait  time.Duration // how long a call waits for a plugin that restarts, before it fails; 3 s
}

func (t Times) withDefaults() Times {
	return Times{
		Start: cmp.Or(t.Start, 10*time.Second), Call: cmp.Or(t.Call, 10*time.Second),
		Check: cmp.Or(t.Check, 5*time.Second), Wait: cmp.Or(t.Wait, 3*time.Second),
	}
}

// Option is an option of a plugin's host.
type Option func(*options)

type options struct {
	log   *slog.Logger
	times Times
	retry bool
}

// WithLogger sets the logger for the plugin's output and its restarts. Without it,
// nothing is logged.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// WithTimes bounds what the plugin may take.
func WithTimes(t Times) Option { return func(o *options) { o.times = t } }

// WithRetry lets Open succeed even if the plugin cannot start: the plugin is then
// down, [fabric.Diagnoser] says why, and it is tried again like one that has died.
// Use it for plugins without which an agent does most of its work.
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
