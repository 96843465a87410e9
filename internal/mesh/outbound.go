package mesh

import (
	"slices"
	"sync"
)

// outbound returns where the calls of an identity may go.
func (s *Snapshot) outbound(caller Identity) *Outbound {
	return s.outbounds.get(caller, func() *Outbound {
		out := &Outbound{
			TrustDomain:  s.parts.Settings.TrustDomain,
			Caller:       caller,
			ServiceCIDRs: s.parts.Settings.ServiceCIDRs,
			AllowEgress:  s.namespaces[caller.Namespace].AllowEgress,
		}
		out.Key = digest(out)
		out.Bundles = s.open()
		if out.AllowEgress {
			out.Bundles = s.outside()
		}
		if more := s.granted(caller); len(more) > 0 {
			out.Bundles = byName(out.Bundles, more)
		}
		return out
	})
}

func byName(lists ...[]*Bundle) []*Bundle {
	return sorted(slices.Concat(lists...), func(a, b *Bundle) int { return a.Name.Compare(b.Name) })
}

// prepareShared makes ready the bundles that do not depend on who calls, apart
// from whether it may leave the mesh. Callers without grants share these slices.
func (s *Snapshot) prepareShared() {
	s.open = sync.OnceValue(func() []*Bundle {
		var out []*Bundle
		for i := range s.parts.Services {
			svc := &s.parts.Services[i]
			switch {
			case svc.AlwaysReachable:
				out = append(out, s.passthrough(svc, svc.Endpoints))
			case svc.InMesh && s.mode(svc.Name.Namespace) == Permissive:
				out = append(out, s.bundle(svc, everything(false)))
			}
		}
		return out
	})
	s.outside = sync.OnceValue(func() []*Bundle {
		var out []*Bundle
		for i := range s.parts.Services {
			svc := &s.parts.Services[i]
			switch {
			case svc.AlwaysReachable:
				out = append(out, s.passthrough(svc, svc.Endpoints))
			case svc.InMesh && s.mode(svc.Name.Namespace) == Permissive:
				out = append(out, s.bundle(svc, everything(true)))
			// The pods of a headless Service are outside the service CIDRs, where
			// the egress setting alone decides.
			case !svc.InMesh && !svc.Headless:
				out = append(out, s.passthrough(svc, nil))
			}
		}
		return byName(out)
	})
}

// granted returns the bundles of enforced namespaces that a caller has grants
// for, in any order.
func (s *Snapshot) granted(caller Identity) []*Bundle {
	r := reach{grants: map[Identity][]*Grant{}}
	candidates := map[PortName]*Service{}
	for _, g := range s.byCaller[caller] {
		r.grants[g.Server] = append(r.grants[g.Server], g)
		for _, svc := range slices.Concat(s.serves[g.Server], s.unserved[g.Server.Namespace]) {
			candidates[svc.Name] = svc
			for _, apex := range s.apexes[svc.Name.ServiceName] {
				name := PortName{ServiceName: apex, Port: svc.Name.Port}
				if a := s.services[name]; a != nil && !a.passthrough() {
					candidates[name] = a
				}
			}
		}
	}
	var out []*Bundle
	for _, svc := range candidates {
		if b := s.bundle(svc, r); b != nil {
			out = append(out, b)
		}
	}
	return out
}

// A reach is what callers may do: the grants of one, by server; or, where grants
// is nil, everything in a permissive namespace.
type reach struct {
	grants map[Identity][]*Grant
	egress bool // they may leave the mesh
}

// everything is the reach of every caller into a permissive namespace.
func everything(egress bool) reach { return reach{egress: egress} }

// may reports whether the caller may call a port of a server.
func (r reach) may(server Identity, port uint16, p Protocol) bool {
	return r.grants == nil || slices.ContainsFunc(r.grants[server], func(g *Grant) bool { return g.opens(port, p) })
}

// mayOnceServed reports whether the caller could call svc if a server came that it
// has a grant for. Without pods, a port that is named has no number yet.
func (r reach) mayOnceServed(svc *Service) bool {
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

// side returns what of svc a caller may use. Endpoints without a proxy are for
// permissive namespaces only, because nothing there could enforce anything; those
// that are no pods of the mesh, for callers that may leave it. A headless Service
// does without the latter: what is dialled there is egress already.
func (s *Snapshot) side(svc *Service, r reach) side {
	if r.grants == nil {
		return side{
			identities: svc.Identities,
			endpoints:  filter(svc.Endpoints, func(e Endpoint) bool { return !e.Outside || r.egress && !svc.Headless }),
			ok:         true,
		}
	}
	ports := slices.Clone(svc.TargetPorts)
	for _, e := range svc.Endpoints {
		ports = append(ports, e.Port)
	}
	ports = set(ports, func(a, b uint16) int { return int(a) - int(b) })
	out := side{
		identities: filter(svc.Identities, func(id Identity) bool {
			return slices.ContainsFunc(ports, func(p uint16) bool { return r.may(id, p, svc.Protocol) })
		}),
		endpoints: filter(svc.Endpoints, func(e Endpoint) bool {
			return !e.Identity.IsZero() && r.may(e.Identity, e.Port, svc.Protocol)
		}),
	}
	out.ok = len(out.identities) > 0
	out.awaited = svc.awaitable() && r.mayOnceServed(svc)
	return out
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
		Name:        svc.Name,
		TrustDomain: s.parts.Settings.TrustDomain,
		Protocol:    svc.Protocol,
		Addresses:   svc.Addresses,
		Headless:    svc.Headless,
		Identities:  own.identities,
		Endpoints:   own.endpoints,
	}
	if svc.Protocol != TCP {
		b.Routes = []Route{{Shares: []Share{{To: svc.Name, Weight: 1}}}}
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
	return s.shared(b)
}

func (s *Snapshot) passthrough(svc *Service, endpoints []Endpoint) *Bundle {
	return s.shared(&Bundle{
		Name:        svc.Name,
		TrustDomain: s.parts.Settings.TrustDomain,
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
