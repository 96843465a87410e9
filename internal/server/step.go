package server

import (
	"sync"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// steps are the differences between Sets that streams have just needed, so that
// each is worked out once for all proxies that go the same way.
type steps struct {
	mu   sync.Mutex
	made map[fromTo]func() *xds.Delta
}

type fromTo struct{ from, to *xds.Set }

// between returns what turns from into to. It is shared: do not change it.
func (s *steps) between(from, to *xds.Set) *xds.Delta {
	s.mu.Lock()
	key := fromTo{from, to}
	delta, ok := s.made[key]
	if !ok {
		if s.made == nil {
			s.made = map[fromTo]func() *xds.Delta{}
		}
		delta = sync.OnceValue(func() *xds.Delta { return xds.Diff(from, to) })
		s.made[key] = delta
	}
	s.mu.Unlock()
	return delta() // outside the lock: other steps need not wait for this one
}

// forget drops all differences, and with them the Sets of the past.
func (s *steps) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = nil
}
