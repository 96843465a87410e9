package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// A Snapshot is everything needed to configure any proxy, at one moment. It
// never changes, and any number of goroutines may use it at the same time.
type Snapshot struct {
	parts   Parts // sorted, and never changed
	version string

	namespaces map[string]Namespace
	defaults   map[string]*PortPolicy // what holds in each namespace of the mesh
	workloads  map[ProxyID]*Workload
	services   map[PortName]*Service
	serves     map[Identity][]*Service // where it is not all permissive
	unserved   map[string][]*Service   // likewise, in each namespace
	letting    map[Group][]*Service    // whose ports have a grant for a group
	lettingOne map[Identity][]*Service // or for an identity
	byServer   map[Identity][]*Grant
	byCaller   map[Identity][]*Grant
	splits     map[ServiceName]*Split
	apexes     map[ServiceName][]ServiceName // of the splits that name a backend
	hints      hints

	trust *Trust
	// unmeshed are the addresses of pods without a proxy that Services of the mesh
	// lead to, sorted; made at the first call.
	unmeshed func() []netip.Addr
	// Views are made when they are asked for, and then kept.
	inbounds  memo[string, *Inbound]
	outbounds memo[caller, *Outbound]
	open      memo[liberty, []*Bundle] // what every caller of that liberty has
	bundles   memo[string, *Bundle]    // by key, so that equal ones are one
}

// NewSnapshot sorts, checks and indexes parts. The same parts in another order
// make an equal Snapshot. It leaves parts alone and shares some of its slices,
// so the caller must not change them afterwards. The error joins every fault
// found.
func NewSnapshot(parts Parts) (*Snapshot, error) {
	parts = canonical(parts)
	if err := errors.Join(faults(parts)...); err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	s := &Snapshot{parts: parts, version: digest(parts)}
	s.index()
	return s, nil
}

// Version names the content of s. Snapshots of equal Version are
// interchangeable.
func (s *Snapshot) Version() string { return s.version }

// Settings returns what holds for the whole mesh. It is shared: do not change it.
func (s *Snapshot) Settings() Settings { return s.parts.Settings }

// Trust returns what the peers of every proxy are verified against. It is shared:
// do not change it.
func (s *Snapshot) Trust() *Trust { return s.trust }

// Dump returns all that s was made of, sorted. It is shared: do not change it.
func (s *Snapshot) Dump() Parts { return s.parts }

// Proxies returns the proxies of the mesh, sorted.
func (s *Snapshot) Proxies() []ProxyID {
	ids := make([]ProxyID, len(s.parts.Workloads))
	for i, w := range s.parts.Workloads {
		ids[i] = w.ID
	}
	return ids
}

// Workload returns the pod that the proxy id runs in, and whether it is in the
// mesh. It is shared: do not change it.
func (s *Snapshot) Workload(id ProxyID) (Workload, bool) {
	w, ok := s.workloads[id]
	if !ok {
		return Workload{}, false
	}
	return *w, true
}

// View returns what the proxy id serves and may call. It reports false when id
// is not in the mesh, which is normal while a pod starts or goes away. Asking
// again, or for a replica, costs next to nothing.
func (s *Snapshot) View(id ProxyID) (View, bool) {
	w, ok := s.workloads[id]
	if !ok {
		return View{}, false
	}
	return View{Trust: s.trust, Inbound: s.inbound(w), Outbound: s.outbound(caller{w.Identity, w.MutualTLSOnly, s.near(w)})}, true
}

// Outbound returns where the calls of an identity may go, whether or not a
// workload has it now: one that has nothing to say beyond its namespace, and is
// nowhere in particular.
func (s *Snapshot) Outbound(id Identity) *Outbound {
	return s.outbound(caller{id, s.namespaces[id.Namespace].MutualTLSOnly, place{}})
}

func (s *Snapshot) index() {
	p := s.parts
	s.trust = p.Settings.Trust()
	s.namespaces = make(map[string]Namespace, len(p.Namespaces))
	s.defaults = make(map[string]*PortPolicy, len(p.Namespaces))
	for _, n := range p.Namespaces {
		s.namespaces[n.Name] = n
		s.defaults[n.Name] = &PortPolicy{Mode: n.Mode, PlainText: n.PlainText}
	}
	s.workloads = make(map[ProxyID]*Workload, len(p.Workloads))
	for i := range p.Workloads {
		s.workloads[p.Workloads[i].ID] = &p.Workloads[i]
	}
	s.indexServices()
	s.byServer, s.byCaller = map[Identity][]*Grant{}, map[Identity][]*Grant{}
	for i := range p.Grants {
		g := &p.Grants[i]
		s.byServer[g.Server] = append(s.byServer[g.Server], g)
		for _, c := range g.Callers {
			s.byCaller[c] = append(s.byCaller[c], g)
		}
	}
	s.splits, s.apexes = map[ServiceName]*Split{}, map[ServiceName][]ServiceName{}
	for i := range p.Splits {
		sp := &p.Splits[i]
		s.splits[sp.Apex] = sp
		for _, b := range sp.Backends {
			name := ServiceName{Namespace: sp.Apex.Namespace, Name: b.Service}
			s.apexes[name] = append(s.apexes[name], sp.Apex)
		}
	}
	s.indexHints()
	s.unmeshed = sync.OnceValue(s.findUnmeshed)
}

func (s *Snapshot) indexServices() {
	s.services = make(map[PortName]*Service, len(s.parts.Services))
	s.serves, s.unserved = map[Identity][]*Service{}, map[string][]*Service{}
	s.letting, s.lettingOne = map[Group][]*Service{}, map[Identity][]*Service{}
	for i := range s.parts.Services {
		svc := &s.parts.Services[i]
		s.services[svc.Name] = svc
		if svc.passthrough() {
			continue
		}
		s.indexGrants(svc)
		if len(svc.Targets) == 0 && s.policy(svc.Name.Namespace, svc.Policy).Mode == Permissive {
			continue
		}
		if svc.awaitable() {
			s.unserved[svc.Name.Namespace] = append(s.unserved[svc.Name.Namespace], svc)
		}
		for _, id := range svc.Identities {
			s.serves[id] = append(s.serves[id], svc)
		}
	}
}

// indexGrants notes whom the ports of a Service let in by grants of their own.
func (s *Snapshot) indexGrants(svc *Service) {
	groups, ones := map[Group]bool{}, map[Identity]bool{}
	note := func(p *PortPolicy) {
		if p == nil {
			return
		}
		for _, g := range p.Grants {
			for _, group := range g.Groups {
				groups[group] = true
			}
			for _, id := range g.Callers {
				ones[id] = true
			}
		}
	}
	note(svc.Policy)
	for _, t := range svc.Targets {
		note(t.Policy)
	}
	for _, e := range svc.Endpoints {
		note(e.Policy)
	}
	for g := range groups {
		s.letting[g] = append(s.letting[g], svc)
	}
	for id := range ones {
		s.lettingOne[id] = append(s.lettingOne[id], svc)
	}
}

// policy returns p or, where that is nil, what holds in a namespace. One that is
// not in the mesh is enforced.
func (s *Snapshot) policy(namespace string, p *PortPolicy) *PortPolicy {
	if p != nil {
		return p
	}
	if p = s.defaults[namespace]; p != nil {
		return p
	}
	return &PortPolicy{}
}

// passthrough reports whether calls to svc leave the mesh.
func (svc *Service) passthrough() bool { return !svc.InMesh || svc.AlwaysReachable }

// awaitable reports whether callers keep what leads to svc while nobody serves it.
// What leads to a headless Service are the addresses of its pods.
func (svc *Service) awaitable() bool { return svc.Unserved && !svc.Headless }

// filter returns those of in that keep wants, in a new slice: what a Snapshot is
// made of is shared.
func filter[T any](in []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(in), func(v T) bool { return !keep(v) })
}

// digest names the content of v, which has nothing in it that JSON leaves out.
func digest(v any) string {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(v); err != nil {
		panic(fmt.Sprintf("the model must encode: %v", err)) // only strings, numbers and addresses are in it
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
