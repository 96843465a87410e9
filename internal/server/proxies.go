package server

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A ProxyState is what a connected proxy trusts and shows.
type ProxyState struct {
	Proxy mesh.ProxyID `json:"proxy"`
	// Trust is the key of the [mesh.Trust] that everything which its Envoy
	// acknowledged says; empty while it has acknowledged none as a whole.
	Trust string `json:"trust,omitempty"`
	// TrustDomain and Roots are where the certificate of its connection leads to; Roots
	// are the SHA-256 of their DER, sorted. NotAfter is when that certificate ends.
	TrustDomain string    `json:"trustDomain"`
	Roots       []string  `json:"roots"`
	NotAfter    time.Time `json:"notAfter"`
	// Since is when it connected, and showed that certificate.
	Since time.Time `json:"since"`
}

// Proxies returns the state of each pod that is connected to this replica, sorted.
// Of several streams of a pod the newest counts.
func (s *Server) Proxies() []ProxyState {
	_, proxies := s.current()
	newest := make(map[mesh.ProxyID]*proxy, len(proxies))
	for _, p := range proxies {
		if other := newest[p.id]; other == nil || other.opened.Before(p.opened) {
			newest[p.id] = p
		}
	}
	states := make([]ProxyState, 0, len(newest))
	for _, p := range newest {
		states = append(states, p.state())
	}
	slices.SortFunc(states, func(a, b ProxyState) int { return a.Proxy.Compare(b.Proxy) })
	return states
}

func (p *proxy) state() ProxyState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ProxyState{Proxy: p.id, Trust: p.trust, TrustDomain: p.shown.trustDomain, Roots: p.shown.roots, NotAfter: p.shown.ends, Since: p.opened}
}

// trusts returns the key of the trust that everything says which the proxy has
// acknowledged, if it is the same everywhere. What a proxy does not ask for it has
// no use for.
func (s *stream) trusts() (string, bool) {
	var key string
	for _, t := range []xds.Type{xds.Cluster, xds.Listener, xds.Secret, xds.Route} {
		f := &s.feeds[t]
		switch {
		case !f.asked && !f.wildcard():
			continue
		case f.acked == nil || f.acked != f.sent || key != "" && key != f.acked.Trust():
			return "", false
		}
		key = f.acked.Trust()
	}
	return key, key != ""
}

func (p *proxy) acknowledgeTrust(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trust = key
}

// An Issued is the last certificate that this replica had signed for a pod.
type Issued struct {
	UID        string    `json:"uid"`
	Authority  string    `json:"authority"`
	Generation string    `json:"generation,omitempty"`
	Roots      []string  `json:"roots"` // SHA-256 of their DER, sorted
	NotAfter   time.Time `json:"notAfter"`
	Signed     time.Time `json:"signed"` // when that was
}

// Issued returns them by the pod's uid. Pods that are gone are forgotten.
func (s *Server) Issued() []Issued {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.AppendSeq(make([]Issued, 0, len(s.issued)), maps.Values(s.issued))
	slices.SortFunc(all, func(a, b Issued) int { return cmp.Compare(a.UID, b.UID) })
	return all
}

// young is how long after its certificate a pod may not be in any snapshot yet.
const young = 10 * time.Minute

// maxIssued bounds the memory of what was signed, beside the rates of signing and
// the pods that there are.
const maxIssued = 100_000

// note remembers what was signed for a pod.
func (s *Server) note(signed signing.Signed) error {
	chain := make([]*x509.Certificate, len(signed.Chain))
	for i, der := range signed.Chain {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("parse what was signed: %w", err)
		}
	}
	v, err := s.trust.verify(chain)
	if err != nil {
		return fmt.Errorf("verify what was signed: %w", err)
	}
	uid := v.leaf().Subject.SerialNumber
	if uid == "" {
		return nil
	}
	s.mu.Lock()
	if len(s.issued) < maxIssued || s.issued[uid].UID != "" {
		s.issued[uid] = Issued{
			UID: uid, Authority: signed.By.GetName(), Generation: signed.By.GetGeneration(),
			Roots: v.roots, NotAfter: v.ends, Signed: time.Now(),
		}
	}
	s.mu.Unlock()
	s.renewed(uid)
	return nil
}

// forgetIssued drops what was signed for pods that are not in the snapshot, or not
// any more. The caller has the lock.
func (s *Server) forgetIssued(snap *mesh.Snapshot, now time.Time) {
	alive := make(map[string]bool, len(s.issued))
	for _, id := range snap.Proxies() {
		alive[id.UID] = true
	}
	maps.DeleteFunc(s.issued, func(uid string, i Issued) bool {
		return now.After(i.NotAfter) || !alive[uid] && now.Sub(i.Signed) > young
	})
}
