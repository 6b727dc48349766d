// Package testplugin is a plugin for tests, over the fakes, that misbehaves on
// request. Environment variables set it up:
//
//	TESTPLUGIN_DIR   a directory: its process number is in pid there, and a
//	                 socket called control takes commands, see Command
//	TESTPLUGIN_IS    what it is, of speaker, resolver, observer; all by default
//	TESTPLUGIN_MODE  how it misbehaves, see Main
//
// The tests of package plugins start their own program as the plugin, so that none
// has to be compiled for them.
package testplugin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// Main is main of a program that is the plugin. With the arguments host and the path
// of a plugin, the program hosts that plugin instead.
func Main() {
	if len(os.Args) > 2 && os.Args[1] == "host" {
		host(os.Args[2])
		return
	}
	dir := os.Getenv("TESTPLUGIN_DIR")
	if dir != "" {
		// Whoever reads it while it is written finds the one of before.
		pid := filepath.Join(dir, "pid")
		whole := fmt.Sprintf("%s.%d", pid, os.Getpid())
		must(os.WriteFile(whole, []byte(strconv.Itoa(os.Getpid())), 0o600))
		must(os.Rename(whole, pid))
	}
	switch mode, arg, _ := strings.Cut(os.Getenv("TESTPLUGIN_MODE"), "="); mode {
	case "mute": // a program that is no plugin and does not end
		select {}
	case "say": // likewise, but it says something first
		fmt.Println(arg)
		select {}
	case "fail": // it cannot do its work here
		fmt.Fprintln(os.Stderr, arg)
		os.Exit(3)
	case "flood": // it prints much, before the handshake and while it runs
		go func() {
			for i := 0; ; i++ {
				fmt.Fprintf(os.Stderr, "flood %d %s\n", i, strings.Repeat("x", 200))
			}
		}()
		fmt.Fprintln(os.Stderr, strings.Repeat("no end of line ", 20000))
	case "foreign": // made by somebody else from plugin.proto
		foreign(arg)
		return
	case "", "stopped", "scripted": // it behaves
	case "mark": // what main does after Serve
		defer func() { must(os.WriteFile(filepath.Join(dir, "ended"), nil, 0o600)) }()
		defer fmt.Fprintln(os.Stderr, "last words")
	case "stay": // it does not end when it is asked to
		defer time.Sleep(time.Hour)
	default:
		must(fmt.Errorf("unknown mode %q", mode))
	}

	p := newParts()
	if dir != "" {
		go p.control(filepath.Join(dir, "control"))
	}
	is := cmp.Or(os.Getenv("TESTPLUGIN_IS"), "speaker,resolver,observer")
	var c plugins.Config
	if strings.Contains(is, "speaker") {
		c.Speaker = p.speaker
	}
	if strings.Contains(is, "resolver") {
		c.Resolver = p.resolver
	}
	if strings.Contains(is, "observer") {
		c.Observer = p.observer
	}
	plugins.Serve(c)
}

// parts are what the plugin consists of.
type parts struct {
	speaker  *speaker
	resolver *fake.Resolver
	observer *fake.Observer
	journal  *fake.Journal
	hangs    map[string]func()
}

func newParts() *parts {
	j := &fake.Journal{}
	return &parts{
		speaker: &speaker{Speaker: fake.NewSpeaker(j)}, resolver: fake.NewResolver(), observer: fake.NewObserver(),
		journal: j, hangs: map[string]func(){},
	}
}

// host runs a plugin and says its process number, until it is killed.
func host(path string) {
	s, err := plugins.OpenSpeaker(context.Background(), plugins.Program{Path: path},
		plugins.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	must(err)
	fmt.Println("hosting")
	<-s.Changed() // never, of its own accord
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "testplugin:", err)
		os.Exit(1)
	}
}
