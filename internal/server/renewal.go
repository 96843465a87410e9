package server

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// An Envoy shows its certificate when it connects, and never again: what it has
// renewed since counts from its next connection on. No part of Envoy's makes one
// because of that, so the server ends connections whose certificate has been
// replaced, or must have been. Envoy is back within half a second, and is sent
// only what changed meanwhile.

const (
	// writing is how long an agent may take to put what was signed where Envoy
	// reads it.
	writing = 2 * time.Second
	// noticing is how long agents may take to notice that another authority signs,
	// and to renew. It is spread over as long again.
	noticing = 45 * time.Second
	// renewing is the share of what is left of a certificate after which its agent
	// has renewed it: agents do at half, a tenth of that more or less.
	renewing = 0.6
	// soonest bounds how often a connection ends because of a short life.
	soonest = time.Second
	// following is how often the server looks who signs.
	following = 5 * time.Second
)

// replacedIn is when a stream should be opened anew whose certificate has so much
// time left.
func replacedIn(left time.Duration) time.Duration {
	return max(soonest, time.Duration((renewing+0.1*rand.Float64())*float64(left))) //nolint:gosec // spreads load, keeps no secret
}

// renew ends the proxy's connection after some time, unless it ends sooner.
func (p *proxy) renew(in time.Duration, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	due := time.Now().Add(in)
	if p.ending != nil || p.renewal != nil && p.due.Before(due) {
		return
	}
	if p.renewal != nil {
		p.renewal.Stop()
	}
	p.due = due
	p.renewal = time.AfterFunc(in, func() { p.end(refuse(codes.Unavailable, reasonRenewed, "%s", why)) })
}

// stopRenewal lets go of a proxy that is leaving.
func (p *proxy) stopRenewal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.renewal != nil {
		p.renewal.Stop()
	}
}

// renewed ends the connection of a pod that has been given another certificate.
func (s *Server) renewed(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.proxies {
		if p.id.UID == uid {
			p.renew(writing, "the pod has another certificate by now")
		}
	}
}

// follow ends connections when another authority signs, for their certificates are
// replaced then, by whichever replica; and when what they have shown is not trusted
// any more. It ends with ctx.
func (s *Server) follow(ctx context.Context) {
	tick := time.NewTicker(following)
	defer tick.Stop()
	var signer *signing.Authority
	var trusted []mesh.TrustDomain
	for {
		if now, err := s.cfg.Signer.Current(); err == nil {
			if signer != nil && !proto.Equal(signer, now) {
				s.cfg.Log.Info("another authority signs", "authority", now.GetName(), "generation", now.GetGeneration(), "trustDomain", now.GetTrustDomain())
				s.renewAll()
			}
			signer = now
		}
		if now, err := s.cfg.Credentials.Trusted(); err == nil {
			if trusted != nil && !slices.Equal(trusted, now) {
				s.judge()
			}
			trusted = now
		}
		s.recheck()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) renewAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.proxies {
		p.renew(noticing+rand.N(noticing), "another authority signs") //nolint:gosec // spreads load, keeps no secret
	}
}

// Await says which certificates the mesh is waiting for: those of a trust domain that
// lead to a root of its bundle. Connections that show another one, which names no pod,
// are opened anew about once a minute: whoever gives such a certificate does not tell
// the server when it is another one. With nil the mesh waits for none.
func (s *Server) Await(d *mesh.TrustDomain) error {
	if d == nil {
		s.awaited.Store(nil)
		return nil
	}
	parsed, err := parseDomain(*d)
	if err != nil {
		return err
	}
	s.awaited.Store(parsed)
	return nil
}

// shows reports whether a certificate leads to a root of the domain.
func (d *domain) shows(v vouched) bool {
	return v.trustDomain == d.name && slices.ContainsFunc(d.roots, func(der []byte) bool {
		return slices.Contains(v.roots, fingerprint(der))
	})
}

// recheck ends connections that may have another certificate by now, if one is awaited.
func (s *Server) recheck() {
	awaited := s.awaited.Load()
	if awaited == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.proxies {
		if p.shown.leaf().Subject.SerialNumber == "" && !awaited.shows(p.shown) {
			p.renew(noticing+rand.N(noticing), "the certificate names no pod, and may be another one by now") //nolint:gosec // spreads load, keeps no secret
		}
	}
}

// judge ends the connections of proxies that have shown what is not trusted now.
func (s *Server) judge() {
	_, proxies := s.current()
	for _, p := range proxies {
		if _, err := s.trust.verify(p.shown.chain); err != nil {
			p.end(refuse(codes.Unauthenticated, reasonUntrusted, "verify the client certificate: %w", err))
		}
	}
}

// stale reports whether a stream ends because its certificate has been, or must
// have been, replaced, so that its connection is of no use any more.
func stale(err error) bool {
	switch reasonOf(err) {
	case reasonRenewed, reasonUntrusted, reasonEnded:
		return true
	default:
		return false
	}
}

// parting is how long a connection stays after its stream, so that the stream's
// status arrives.
const parting = 50 * time.Millisecond

// hangUp ends the connection of a call.
func hangUp(ctx context.Context) {
	if c, ok := connectionOf(ctx); ok {
		time.AfterFunc(parting, func() { _ = c.conn.Close() })
	}
}
