package mesh

import (
	"net/netip"
	"slices"
)

// A caller is what an Outbound depends on.
type caller struct {
	Identity
	mutualTLSOnly bool
	near          place
}

// A liberty is what callers may do whoever they are.
type liberty struct {
	egress        bool // they may leave the mesh
	mutualTLSOnly bool // they may not call in plain text into the mesh's namespaces
	near          place
}

// outbound returns where the calls of a caller may go.
func (s *Snapshot) outbound(c caller) *Outbound {
	return s.outbounds.get(c, func() *Outbound {
		out := &Outbound{
			TrustDomain:   s.trust.TrustDomain,
			Caller:        c.Identity,
			ServiceCIDRs:  s.parts.Settings.ServiceCIDRs,
			AllowEgress:   s.namespaces[c.Namespace].AllowEgress,
			MutualTLSOnly: c.mutualTLSOnly,
		}
		l := liberty{egress: out.AllowEgress, mutualTLSOnly: c.mutualTLSOnly, near: c.near}
		bundles := s.open.get(l, func() []*Bundle { return s.openBundles(l) })
		if more := s.granted(c.Identity, l); len(more) > 0 {
			bundles = over(bundles, more)
		}
		if c.mutualTLSOnly {
			out.Refused = s.unmeshed()
		}
		out.Key = digest(out)
		out.Bundles = bundles
		out.Collector = s.collector(bundles)
		return out
	})
}

// over returns the bundles of both lists by name, those of more where both have
// one.
func over(bundles, more []*Bundle) []*Bundle {
	replaced := make(map[PortName]bool, len(more))
	for _, b := range more {
		replaced[b.Name] = true
	}
	kept := filter(bundles, func(b *Bundle) bool { return !replaced[b.Name] })
	return sorted(append(kept, more...), func(a, b *Bundle) int { return a.Name.Compare(b.Name) })
}

// openBundles returns what every caller of a liberty has, whoever it is, by name.
// Callers without grants share the slice.
func (s *Snapshot) openBundles(l liberty) []*Bundle {
	var out []*Bundle
	if anywhere := l; l.near != (place{}) {
		for _, svc := range s.hints.services {
			if b := s.bundle(svc, reach{liberty: l}); b != nil {
				out = append(out, b)
			}
		}
		anywhere.near = place{}
		return over(s.open.get(anywhere, func() []*Bundle { return s.openBundles(anywhere) }), out)
	}
	for i := range s.parts.Services {
		svc := &s.parts.Services[i]
		switch {
		case svc.AlwaysReachable:
			out = append(out, s.passthrough(svc, svc.Endpoints))
		case svc.InMesh:
			if b := s.bundle(svc, reach{liberty: l}); b != nil {
				out = append(out, b)
			}
		// The pods of a headless Service are outside the service CIDRs, where
		// the egress setting alone decides.
		case l.egress && !svc.Headless:
			out = append(out, s.passthrough(svc, nil))
		}
	}
	return out
}

// findUnmeshed returns the addresses of pods without a proxy that serve Services of
// the mesh. Those that a pod shares with its node are not its own to refuse, and inside
// the ranges of ClusterIPs nothing else is called anyway.
func (s *Snapshot) findUnmeshed() []netip.Addr {
	inRange := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.parts.Settings.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	var out []netip.Addr
	for i := range s.parts.Services {
		svc := &s.parts.Services[i]
		if svc.passthrough() {
			continue
		}
		for _, e := range svc.Endpoints {
			if e.Unproxied() && !e.OnNode && !inRange(e.Address) {
				out = append(out, e.Address)
			}
		}
	}
	return set(out, netip.Addr.Compare)
}

// granted returns the bundles that a caller sees otherwise than everyone, because
// grants name it, in any order.
func (s *Snapshot) granted(id Identity, l liberty) []*Bundle {
	r := reach{liberty: l, caller: id, grants: map[Identity][]*Grant{}}
	candidates := map[PortName]*Service{}
	add := func(services []*Service) {
		for _, svc := range services {
			candidates[svc.Name] = svc
			for _, apex := range s.apexes[svc.Name.ServiceName] {
				name := PortName{ServiceName: apex, Port: svc.Name.Port}
				if a := s.services[name]; a != nil && !a.passthrough() {
					candidates[name] = a
				}
			}
		}
	}
	for _, g := range s.byCaller[id] {
		r.grants[g.Server] = append(r.grants[g.Server], g)
		add(s.serves[g.Server])
		add(s.unserved[g.Server.Namespace])
	}
	add(s.letting[Group(id.Namespace)])
	add(s.lettingOne[id])
	var out []*Bundle
	for _, svc := range candidates {
		if b := s.bundle(svc, r); b != nil {
			out = append(out, b)
		}
	}
	return out
}

// A reach is what a caller may do.
type reach struct {
	liberty
	caller Identity              // nobody, if it may be anyone
	grants map[Identity][]*Grant // those that name it, by server
}

// may reports whether the caller may call a port of a server, where a policy holds.
func (r reach) may(server Identity, port uint16, p Protocol, policy *PortPolicy) bool {
	return policy.Mode == Permissive ||
		slices.ContainsFunc(r.grants[server], func(g *Grant) bool { return g.opens(port, p) }) ||
		policy.has(r.caller)
}

// has reports whether one of the policy's grants lets a caller in.
func (p *PortPolicy) has(caller Identity) bool {
	return slices.ContainsFunc(p.Grants, func(g PortGrant) bool { return g.Has(caller) })
}

// mayOnceServed reports whether the caller could call svc if a server came that it
// has a grant for. Without pods, a port that is named has no number yet.
func (r reach) mayOnceServed(svc *Service) bool {
	if svc.Policy != nil && svc.Policy.has(r.caller) {
		return true
	}
	for server, grants := range r.grants {
		if server.Namespace != svc.Name.Namespace {
			continue
		}
		for _, g := range grants {
			ports := svc.TargetPorts
			if len(ports) == 0 {
				ports = append(slices.Clip(g.Ports), 0)
			}
			if slices.ContainsFunc(ports, func(p uint16) bool { return g.opens(p, svc.Protocol) }) {
				return true
			}
		}
	}
	return false
}

// A side is the part of a Service that a caller may use.
type side struct {
	identities []Identity
	endpoints  []Endpoint
	ok         bool // it may use some of it
	// awaited says that nobody serves it now, and that the caller may perhaps use
	// what will.
	awaited bool
}

// side returns what of svc a caller may use.
func (s *Snapshot) side(svc *Service, r reach) side {
	out := side{endpoints: filter(svc.Endpoints, func(e Endpoint) bool { return s.mayUse(svc, e, r) })}
	if s.policy(svc.Name.Namespace, svc.Policy).Mode == Permissive && len(svc.Targets) == 0 {
		out.identities = svc.Identities
		// Where no pod has a proxy, there is nothing for a caller that wants one.
		refuses := r.mutualTLSOnly && slices.ContainsFunc(svc.Endpoints, Endpoint.Unproxied)
		out.ok = !refuses || len(out.identities) > 0
	} else {
		out.identities = s.mayFind(svc, r)
		out.ok = len(out.identities) > 0
	}
	out.ok = out.ok || len(out.endpoints) > 0
	out.awaited = svc.awaitable() && r.mayOnceServed(svc)
	out.endpoints = r.near.nearest(svc, out.endpoints)
	for i := range out.endpoints {
		e := &out.endpoints[i]
		e.Policy, e.ForZones, e.ForNodes = nil, nil, nil // they have been asked
	}
	return out
}

// mayUse reports whether a caller may use an endpoint. One without a proxy is for
// permissive mode only, because nothing there could enforce anything, and for callers
// that may call it in plain text; one that is no pod of the mesh, for callers that may
// leave it. A headless Service does without the latter: what is dialled there is
// egress already.
func (s *Snapshot) mayUse(svc *Service, e Endpoint, r reach) bool {
	policy := s.policy(svc.Name.Namespace, e.Policy)
	switch {
	case !e.Identity.IsZero():
		return r.may(e.Identity, e.Port, svc.Protocol, policy)
	case e.Outside:
		return policy.Mode == Permissive && r.egress && !svc.Headless
	default:
		return policy.Mode == Permissive && !r.mutualTLSOnly
	}
}

// mayFind returns the identities with a port, ready or not, that a caller may use.
func (s *Snapshot) mayFind(svc *Service, r reach) []Identity {
	ns := svc.Name.Namespace
	found := map[Identity]bool{}
	for _, e := range svc.Endpoints {
		if !e.Identity.IsZero() && r.may(e.Identity, e.Port, svc.Protocol, s.policy(ns, e.Policy)) {
			found[e.Identity] = true
		}
	}
	for _, t := range svc.Targets {
		if r.may(t.Identity, t.Port, svc.Protocol, s.policy(ns, t.Policy)) {
			found[t.Identity] = true
		}
	}
	if len(svc.Targets) > 0 {
		return filter(svc.Identities, func(id Identity) bool { return found[id] })
	}
	ports := slices.Clone(svc.TargetPorts)
	for _, e := range svc.Endpoints {
		ports = append(ports, e.Port)
	}
	return filter(svc.Identities, func(id Identity) bool {
		return found[id] || slices.ContainsFunc(ports, func(p uint16) bool { return r.may(id, p, svc.Protocol, s.policy(ns, nil)) })
	})
}

// bundle returns svc as a caller with a reach sees it, or nil if it may use
// nothing of it.
//
// A Service that nobody serves now, as one that was scaled to zero, has a bundle
// without servers for every caller with a grant in its namespace that could be for
// it: they are told that nothing answers (503), and the first pod needs no new
// listener. Which account that pod will have is not known before there is one, so
// the bundle accepts nobody and opens nothing.
func (s *Snapshot) bundle(svc *Service, r reach) *Bundle {
	own := s.side(svc, r)
	b := &Bundle{
		Name:       svc.Name,
		Protocol:   svc.Protocol,
		Addresses:  svc.Addresses,
		Headless:   svc.Headless,
		Identities: own.identities,
		Endpoints:  own.endpoints,
		Pool:       svc.pool(),
	}
	b.TrustDomain, b.AlsoTrusted = s.trust.serverDomains()
	if !svc.Protocol.IsHTTP() {
		b.IdleTimeout = svc.Traffic.IdleTimeout
	}
	if svc.Protocol != TCP {
		b.Routes = []Route{{Shares: []Share{{To: svc.Name, Weight: 1}}}}
		b.Traced = s.traced()
	}
	if split := s.splits[svc.Name.ServiceName]; split != nil {
		backends, awaited := s.backends(split, svc, r)
		if !own.ok && !own.awaited && len(backends) == 0 && !awaited {
			return nil
		}
		applySplit(b, split, backends)
	} else if !own.ok && !own.awaited {
		return nil
	}
	s.treat(b, svc)
	return s.shared(b)
}

func (s *Snapshot) passthrough(svc *Service, endpoints []Endpoint) *Bundle {
	return s.shared(&Bundle{
		Name:        svc.Name,
		TrustDomain: s.trust.TrustDomain,
		Protocol:    svc.Protocol,
		Addresses:   svc.Addresses,
		Passthrough: true,
		Endpoints:   endpoints,
	})
}

// shared gives b its key, and returns the bundle that has had it first.
func (s *Snapshot) shared(b *Bundle) *Bundle {
	key := digest(b)
	return s.bundles.get(key, func() *Bundle {
		b.Key = key
		return b
	})
}
