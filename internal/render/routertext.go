package render

import (
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"text/template"
	"time"
	"unicode"

	"github.com/vmfabric/vmfabric/fabric"
)

//go:embed router/*.tmpl
var routerFiles embed.FS

var routerTemplates = template.Must(template.New("router").Funcs(template.FuncMap{
	"seconds":       func(d time.Duration) int { return int(d / time.Second) },
	"third":         func(d time.Duration) int { return int(d / time.Second / 3) },
	"join":          join,
	"seq":           func(n int) int { return 10 * (n + 1) },
	"bfdInterval":   func() int { return bfdInterval },
	"bfdMultiplier": func() int { return bfdMultiplier },
	"medBase":       func() int { return medBase },
	"med":           func(pref uint32) uint32 { return medBase - pref },
	"preferences":   preferences,
	"draining":      fabric.Draining.LocalPref,
	"blackholed":    fabric.Blackholed.LocalPref,
	"blackhole":     func() fabric.Community { return fabric.BlackholeCommunity },
	"normal":        fabric.Normal.LocalPref,
	"fresh":         fabric.Fresh.LocalPref,
	"shutdown":      func() fabric.Community { return fabric.GracefulShutdown },
	"listenLimit":   func() int { return listenLimit },
	"birdInside":    birdInside,
	"birdRanges":    birdRanges,
	"birdCommunity": birdCommunity,
	"frrList":       frrList,
	"junosQuote":    junosQuote,
}).ParseFS(routerFiles, "router/*.tmpl"))

const (
	bfdInterval   = 100 // ms, like the agent's
	bfdMultiplier = 3
	// medBase is the MED of LOCAL_PREF 0.
	medBase = 1000
	// listenLimit is how many nodes may connect to FRR, whose default is 100.
	listenLimit = 5000
)

// preferences lists the values of LOCAL_PREF that agents use.
func preferences() (all []uint32) {
	for _, p := range fabric.Preferences() {
		all = append(all, p.LocalPref())
	}
	return all
}

// text writes the router's configuration in its format.
func (r router) text() string {
	t := routerTemplates.Lookup(fmt.Sprintf("%s_%s.tmpl", r.Format, r.Role))
	return strings.TrimSpace(execute(t, r)) + "\n"
}

// join joins the elements of a slice of any type.
func join(sep string, all any) string {
	v := reflect.ValueOf(all)
	words := make([]string, v.Len())
	for i := range words {
		words[i] = fmt.Sprint(v.Index(i))
	}
	return strings.Join(words, sep)
}

// birdInside writes a set of prefixes and all prefixes inside of them.
func birdInside(all []netip.Prefix) string {
	words := make([]string, len(all))
	for i, p := range all {
		words[i] = p.String() + "+"
	}
	return strings.Join(words, birdComma)
}

func birdRanges(all []fabric.PrefixRange) string {
	words := make([]string, len(all))
	for i, r := range all {
		words[i] = fmt.Sprintf("%s{%d,%d}", r.Prefix, r.Min, r.Max)
	}
	return strings.Join(words, birdComma)
}

const birdComma = ",\n\t"

func birdCommunity(c fabric.Community) string {
	if c.Large {
		return fmt.Sprintf("(%d, %d, %d)", c.A, c.B, c.C)
	}
	return fmt.Sprintf("(%d, %d)", c.A, c.B)
}

// frrList writes the prefix list of a family. FRR takes only bounds above the
// length of the prefix itself.
func frrList(f family) []string {
	var lines []string
	add := func(action string, p netip.Prefix, least, most int) {
		line := fmt.Sprintf("%s prefix-list GUESTS%s seq %d %s %s", f.IP(), f.N(), 5*(len(lines)+1), action, frrPrefix(p))
		if least > p.Bits() {
			line += fmt.Sprintf(" ge %d", least)
		}
		if most > p.Bits() && (least < most || most < p.Addr().BitLen()) {
			line += fmt.Sprintf(" le %d", most)
		}
		lines = append(lines, line)
	}
	add("deny", f.Default(), 0, 0)
	for _, p := range f.Martians {
		add("deny", p, p.Bits(), p.Addr().BitLen())
	}
	for _, p := range f.Excluded {
		add("deny", p, p.Bits(), p.Addr().BitLen())
	}
	for _, g := range f.Guests {
		add("permit", g.Prefix, g.Min, g.Max)
	}
	return lines
}

// frrPrefix writes a prefix as FRR does: a reload compares the text.
func frrPrefix(p netip.Prefix) string {
	return strings.Replace(p.String(), "::ffff:0.0.0.0/", "::ffff:0:0/", 1)
}

func junosQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// quotable returns an error if a format cannot hold a password.
func quotable(f Format, s string) error {
	switch {
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("it has a control character, which no router's configuration can hold")
	case f == BIRD && strings.Contains(s, `"`):
		return errors.New(`it has a '"', which BIRD's strings cannot hold`)
	case f == FRR && strings.ContainsFunc(s, unicode.IsSpace):
		return errors.New("it has a space, where FRR separates words")
	case f == Junos && strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII }):
		return errors.New("it has other characters than those of ASCII, which Junos does not take")
	}
	return nil
}
