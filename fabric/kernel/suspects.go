package kernel

import (
	"sync"

	"github.com/vmfabric/vmfabric/internal/signal"
)

// suspects is what the watcher is to look at soon.
type suspects struct {
	wake signal.Signal // there is something to look at

	mu   sync.Mutex
	what suspected
}

type suspected struct {
	ports    map[string]bool // to compare with what was put
	settings map[string]bool // ports whose settings to read
	rules    bool            // somebody removed one, perhaps one of the fabric's
}

func newSuspects() *suspects { return &suspects{wake: signal.New(), what: noSuspects()} }

func noSuspects() suspected {
	return suspected{ports: map[string]bool{}, settings: map[string]bool{}}
}

func (s *suspects) addPorts(names ...string) {
	if len(names) == 0 {
		return
	}
	s.mu.Lock()
	for _, name := range names {
		s.what.ports[name] = true
	}
	s.mu.Unlock()
	s.wake.Send()
}

func (s *suspects) addSettings(port string) {
	s.mu.Lock()
	s.what.settings[port] = true
	s.mu.Unlock()
	s.wake.Send()
}

func (s *suspects) addRules() {
	s.mu.Lock()
	s.what.rules = true
	s.mu.Unlock()
	s.wake.Send()
}

// take returns all suspects. Afterwards there are none.
func (s *suspects) take() suspected {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := s.what
	s.what = noSuspects()
	return what
}
