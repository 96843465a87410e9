package mesh

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
)

// canonical returns p sorted at every level where order says nothing, without
// touching p.
func canonical(p Parts) Parts {
	p.Settings.AlsoTrusted = sorted(p.Settings.AlsoTrusted, func(a, b TrustDomain) int { return strings.Compare(a.Name, b.Name) })
	p.Namespaces = sorted(p.Namespaces, func(a, b Namespace) int { return strings.Compare(a.Name, b.Name) })
	policies := policySet{}
	p.Workloads = sorted(p.Workloads, func(a, b Workload) int { return a.ID.Compare(b.ID) })
	for i := range p.Workloads {
		w := &p.Workloads[i]
		w.Ports = sorted(w.Ports, func(a, b WorkloadPort) int { return cmp.Compare(a.Port, b.Port) })
		for j := range w.Ports {
			w.Ports[j].Policy = policies.canonical(w.Ports[j].Policy)
		}
	}
	p.Services = sorted(p.Services, func(a, b Service) int { return a.Name.Compare(b.Name) })
	for i := range p.Services {
		s := &p.Services[i]
		s.Identities = set(s.Identities, Identity.Compare)
		s.TargetPorts = set(s.TargetPorts, cmp.Compare)
		s.Endpoints = sorted(s.Endpoints, Endpoint.compare)
		for j := range s.Endpoints {
			s.Endpoints[j].ForZones = set(s.Endpoints[j].ForZones, strings.Compare)
			s.Endpoints[j].ForNodes = set(s.Endpoints[j].ForNodes, strings.Compare)
			s.Endpoints[j].Policy = policies.canonical(s.Endpoints[j].Policy)
		}
		s.Policy = policies.canonical(s.Policy)
		s.Targets = policies.targets(s.Targets)
		s.Traffic.Retry.On = set(s.Traffic.Retry.On, strings.Compare)
	}
	p.Grants = slices.Clone(p.Grants)
	for i := range p.Grants {
		g := &p.Grants[i]
		g.Callers = set(g.Callers, Identity.Compare)
		g.Ports = set(g.Ports, cmp.Compare)
		g.HTTP = canonicalMatches(g.HTTP)
	}
	slices.SortFunc(p.Grants, func(a, b Grant) int {
		if c := cmp.Or(a.Server.Compare(b.Server), strings.Compare(a.Source, b.Source)); c != 0 {
			return c
		}
		return strings.Compare(text(a), text(b)) // several grants of one source: any fixed order will do
	})
	p.Splits = sorted(p.Splits, func(a, b Split) int { return a.Apex.Compare(b.Apex) })
	for i := range p.Splits {
		s := &p.Splits[i]
		s.Backends = sorted(s.Backends, func(a, b WeightedShare) int { return strings.Compare(a.Service, b.Service) })
		s.Matches = canonicalMatches(s.Matches)
		s.LeftOut = set(s.LeftOut, func(a, b LeftOut) int {
			return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Why, b.Why))
		})
	}
	return p
}

// A policySet holds the canonical form of policies that many ports share.
type policySet map[*PortPolicy]*PortPolicy

func (s policySet) canonical(p *PortPolicy) *PortPolicy {
	if p == nil || len(p.Grants) == 0 {
		return p
	}
	if _, ok := s[p]; !ok {
		out := *p
		out.Grants = slices.Clone(out.Grants)
		for i := range out.Grants {
			g := &out.Grants[i]
			g.Callers = set(g.Callers, Identity.Compare)
			g.Groups = set(g.Groups, cmp.Compare)
		}
		slices.SortStableFunc(out.Grants, func(a, b PortGrant) int {
			return cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(text(a), text(b)))
		})
		s[p] = &out
	}
	return s[p]
}

// targets returns in sorted, each once.
func (s policySet) targets(in []Target) []Target {
	out := slices.Clone(in)
	for i := range out {
		out[i].Policy = s.canonical(out[i].Policy)
	}
	compare := func(a, b Target) int {
		if c := cmp.Or(a.Identity.Compare(b.Identity), cmp.Compare(a.Port, b.Port)); c != 0 || a.Policy == b.Policy {
			return c
		}
		return strings.Compare(text(a.Policy), text(b.Policy))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b Target) bool { return compare(a, b) == 0 })
}

func canonicalMatches(in []HTTPMatch) []HTTPMatch {
	out := slices.Clone(in)
	for i := range out {
		m := &out[i]
		m.Methods = set(m.Methods, strings.Compare)
		m.Headers = set(m.Headers, HeaderMatch.compare)
	}
	slices.SortFunc(out, HTTPMatch.compare)
	return slices.CompactFunc(out, func(a, b HTTPMatch) bool { return a.compare(b) == 0 })
}

func sorted[T any](in []T, compare func(a, b T) int) []T {
	out := slices.Clone(in)
	slices.SortStableFunc(out, compare)
	return out
}

// set returns in sorted and without repetitions.
func set[T comparable](in []T, compare func(a, b T) int) []T {
	return slices.Compact(sorted(in, compare))
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // see digest
	}
	return string(b)
}

func (e Endpoint) compare(f Endpoint) int {
	return cmp.Or(
		e.Address.Compare(f.Address),
		cmp.Compare(e.Port, f.Port),
		e.Identity.Compare(f.Identity),
	)
}

// compare orders matches from the most specific to the least: by the kind of the
// path (exact, regex, prefix, any), the longer path first, then the one with more
// headers, then one with methods before one without; what is left, by text. A
// request is allowed if any rule covers it, so the order decides nothing: it is
// for readers, and so that equal policies have equal bytes. Routes of a split are
// tried in this order.
func (m HTTPMatch) compare(n HTTPMatch) int {
	return cmp.Or(
		cmp.Compare(m.Path.Kind.rank(), n.Path.Kind.rank()),
		cmp.Compare(len(n.Path.Value), len(m.Path.Value)),
		cmp.Compare(len(n.Headers), len(m.Headers)),
		cmp.Compare(min(len(n.Methods), 1), min(len(m.Methods), 1)),
		strings.Compare(m.Path.Value, n.Path.Value),
		slices.Compare(m.Methods, n.Methods),
		slices.CompareFunc(m.Headers, n.Headers, HeaderMatch.compare),
	)
}

func (h HeaderMatch) compare(g HeaderMatch) int {
	return cmp.Or(
		strings.Compare(h.Name, g.Name),
		strings.Compare(string(h.Value.Kind), string(g.Value.Kind)),
		strings.Compare(h.Value.Value, g.Value.Value),
	)
}

func (k MatchKind) rank() int {
	return slices.Index([]MatchKind{Exact, Regex, Prefix, Any}, k)
}
