package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A proxy is an open stream as the rest of the server sees it.
type proxy struct {
	id       mesh.ProxyID
	identity mesh.Identity
	shown    vouched // by its certificate
	address  string
	tls      string // how its connection is kept private
	opened   time.Time

	wake  chan struct{} // holds one: there is a new target
	ended chan struct{} // closed when the stream must end

	mu        sync.Mutex
	seen      bool     // a snapshot had it
	target    *xds.Set // what the proxy should have; nil while unknown
	published time.Time
	ending    *signing.Refusal // why ended is closed
	acked     map[xds.Type]string
	trust     string // the key of what it trusts, see trusts
	nack      *nack
	renewal   *time.Timer // ends the stream; nil for none
	due       time.Time   // of renewal
}

// aim returns what the proxy should have, and since when.
func (p *proxy) aim() (*xds.Set, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target, p.published
}

// retarget says what the proxy should have from now on.
func (p *proxy) retarget(to *xds.Set, published time.Time) {
	p.mu.Lock()
	p.seen = true
	if p.target == to {
		p.mu.Unlock()
		return
	}
	p.target, p.published = to, published
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // it has not yet seen the last one, and will see this instead
	}
}

// end makes the stream end with a status. The first call counts.
func (p *proxy) end(why *signing.Refusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending == nil {
		p.ending = why
		close(p.ended)
	}
}

// over reports whether end was called.
func (p *proxy) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending != nil
}

// wasSeen reports whether the proxy was in an earlier snapshot, so that its absence
// from this one means that it is gone.
func (p *proxy) wasSeen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *proxy) why() *signing.Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending
}

// Publish makes snap current. Proxies whose View changed are sent the
// difference, the others hear nothing, and the streams of pods that are gone
// end. A proxy whose configuration Envoy would refuse keeps what it has; the
// error joins these faults, each once.
func (s *Server) Publish(_ context.Context, snap *mesh.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot, s.published = snap, time.Now()
	s.steps.forget()
	s.forgetIssued(snap, s.published)
	sets := map[mesh.View]*xds.Set{}
	var errs []error
	for p := range s.proxies {
		view, ok := snap.View(p.id)
		if !ok {
			if p.wasSeen() {
				p.end(refuse(codes.PermissionDenied, reasonUnknownPod, "pod %s is gone", p.id))
			}
			continue
		}
		set, made := sets[view]
		if !made {
			var err error
			if set, err = s.set(p.id, view); err != nil {
				errs = append(errs, err)
			}
			sets[view] = set
		}
		if set != nil {
			p.retarget(set, s.published)
		}
	}
	s.cache.Forget()
	return errors.Join(errs...)
}

// set makes the configuration of a proxy.
func (s *Server) set(id mesh.ProxyID, view mesh.View) (*xds.Set, error) {
	set, err := s.cache.Set(view)
	if err != nil {
		s.metrics.invalid.Inc()
		return nil, fmt.Errorf("configure proxy %s: %w", id, err)
	}
	return set, nil
}

// join adds a stream to those that Publish reaches.
func (s *Server) join(p *proxy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return refuse(codes.Unavailable, reasonStopping, "this replica is stopping")
	}
	s.supersede(p.id)
	if s.snapshot != nil {
		if view, ok := s.snapshot.View(p.id); ok {
			set, err := s.set(p.id, view)
			if err != nil {
				// It keeps what it has from another replica or an earlier stream.
				s.cfg.Log.Error(err, "proxy gets no configuration", "proxy", p.id.String())
			}
			p.retarget(set, s.published)
		}
	}
	s.proxies[p] = struct{}{}
	s.metrics.connected.Set(float64(len(s.proxies)))
	return nil
}

// maxPodStreams of one pod may be open at a time. Envoy has one, and another for as
// long as the end of the first has not been noticed here.
const maxPodStreams = 4

// supersede makes room for one more stream of a pod: the oldest ends. A pod cannot
// exhaust the server with streams, nor be locked out by its own dead ones.
func (s *Server) supersede(id mesh.ProxyID) {
	var open []*proxy
	for p := range s.proxies {
		if p.id == id && !p.over() {
			open = append(open, p)
		}
	}
	if len(open) < maxPodStreams {
		return
	}
	oldest := slices.MinFunc(open, func(a, b *proxy) int { return a.opened.Compare(b.opened) })
	oldest.end(refuse(codes.ResourceExhausted, reasonTooMany, "pod %s has %d newer streams", id, maxPodStreams))
}

func (s *Server) leave(p *proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.proxies, p)
	s.metrics.connected.Set(float64(len(s.proxies)))
}

// endStreams makes all streams end, and no new ones begin.
func (s *Server) endStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for p := range s.proxies {
		p.end(refuse(codes.Unavailable, reasonStopping, "this replica is stopping"))
	}
}
