package ingest

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// splits turns the TrafficSplits of the mesh's namespaces into splits. Of those
// with the same apex the oldest wins.
func (b *builder) splits() {
	objs := slices.DeleteFunc(slices.Clone(b.objs.TrafficSplits), func(o *splitv1alpha4.TrafficSplit) bool { return !b.member(o.Namespace) })
	slices.SortFunc(objs, func(p, q *splitv1alpha4.TrafficSplit) int {
		return cmp.Or(p.CreationTimestamp.Compare(q.CreationTimestamp.Time), strings.Compare(p.Namespace, q.Namespace), strings.Compare(p.Name, q.Name))
	})
	winners := map[mesh.ServiceName]string{}
	for _, o := range objs {
		s := split{builder: b, o: o, ref: ref(splitv1alpha4.GroupVersion().String(), "TrafficSplit", o)}
		name, ok := s.service(ApexNotFound, o.Spec.Service)
		if !ok {
			continue
		}
		apex := mesh.ServiceName{Namespace: o.Namespace, Name: name}
		if winner, taken := winners[apex]; taken {
			s.problem(SplitConflict, "service %s is split by the older TrafficSplit %s, so this one is left out", name, winner)
			continue
		}
		winners[apex] = o.Name
		if out, ok := s.model(apex); ok {
			b.parts.Splits = append(b.parts.Splits, out)
		}
	}
}

// A split is a TrafficSplit while it is read.
type split struct {
	*builder
	o   *splitv1alpha4.TrafficSplit
	ref ObjectRef
}

func (s *split) problem(reason Reason, format string, args ...any) {
	s.found.add(s.ref, reason, format, args...)
}

// service returns the name of a Service of the split's namespace, written as
// name, name.namespace, name.namespace.svc or with the cluster's domain.
func (s *split) service(notFound Reason, written string) (string, bool) {
	name, rest, dotted := strings.Cut(strings.TrimSuffix(written, "."), ".")
	ns, tail, _ := strings.Cut(rest, ".")
	switch {
	case name == "" || dotted && ns == "" || tail != "" && tail != "svc" && tail != "svc."+s.opts.ClusterDomain:
		s.problem(notFound, "%q is not the name of a Service", written)
		return "", false
	case dotted && ns != s.o.Namespace:
		s.problem(OtherNamespace, "service %q is not in the namespace of the TrafficSplit", written)
		return "", false
	}
	return name, true
}

func (s *split) model(apex mesh.ServiceName) (mesh.Split, bool) {
	out := mesh.Split{Source: s.ref.String(), Apex: apex}
	if len(s.ports[apex]) == 0 {
		s.problem(ApexNotFound, "service %s does not exist or has no TCP port", apex.Name)
		return mesh.Split{}, false
	}
	for _, m := range s.o.Spec.Matches {
		out.Matches = append(out.Matches, s.requests(m)...)
	}
	if len(s.o.Spec.Matches) > 0 && len(out.Matches) == 0 {
		// Without its matches it would split every request.
		s.problem(NothingAllowed, "its matches come to nothing, so it splits nothing")
		return mesh.Split{}, false
	}
	s.checkPorts(apex, len(out.Matches) > 0)
	out.Backends, out.LeftOut = s.backends(apex)
	s.checkCallers(apex, out.Backends)
	return out, true
}

// checkPorts reports the ports of the apex that the split leaves alone.
func (s *split) checkPorts(apex mesh.ServiceName, narrowed bool) {
	for _, a := range s.ports[apex] {
		switch {
		case a.Protocol != mesh.TCP:
		case a.Headless:
			s.problem(PortNotSplit, "port %d is not split: its connections are TCP and go to the pod that the caller chose", a.Name.Port)
		case narrowed:
			s.problem(PortNotSplit, "port %d is not split: its connections are TCP, which no HTTPRouteGroup describes", a.Name.Port)
		}
	}
}

func (s *split) requests(m splitv1alpha4.MatchReference) []mesh.HTTPMatch {
	if m.Kind != "HTTPRouteGroup" {
		s.problem(UnsupportedKind, "match %s is a %s; only HTTPRouteGroup is supported", m.Name, m.Kind)
		return nil
	}
	g, ok := s.groups[routeName{s.o.Namespace, m.Name}]
	if !ok {
		s.problem(RouteNotFound, "HTTPRouteGroup %s does not exist in this namespace, so it matches no request", m.Name)
	}
	return slices.Concat(slices.Collect(maps.Values(g))...)
}

// backends returns the backends that can take calls, each once, and the others.
func (s *split) backends(apex mesh.ServiceName) (out []mesh.WeightedShare, leftOut []mesh.LeftOut) {
	weights := map[string]uint64{}
	var total uint64
	for _, k := range s.o.Spec.Backends {
		name, ok := s.service(BackendNotFound, k.Service)
		if !ok {
			leftOut = append(leftOut, mesh.LeftOut{Service: k.Service, Why: "it is no name of a Service of this namespace"})
			continue
		}
		weight, ok := k.Weight.Value()
		if !ok || weight < 0 {
			s.problem(BadWeight, "backend %s has weight %s, so it is left out; weights are whole numbers from 0", name, k.Weight)
			leftOut = append(leftOut, mesh.LeftOut{Service: name, Why: "its weight is " + k.Weight.String()})
			continue
		}
		if why := s.checkBackend(apex, name); why != "" {
			leftOut = append(leftOut, mesh.LeftOut{Service: name, Why: why})
			continue
		}
		weights[name] += uint64(weight)
		total += uint64(weight)
	}
	shift := 0
	for total>>shift > math.MaxUint32 { // which is as much as Envoy adds up
		shift++
	}
	for name, w := range weights {
		out = append(out, mesh.WeightedShare{Service: name, Weight: uint32(w >> shift)}) //nolint:gosec // shifted until it fits
	}
	return out, leftOut
}

// checkBackend says why a backend can take the traffic of no port of the apex, or
// nothing. The ports whose traffic it cannot take are Problems.
func (s *split) checkBackend(apex mesh.ServiceName, name string) (why string) {
	backend := mesh.ServiceName{Namespace: apex.Namespace, Name: name}
	if len(s.ports[backend]) == 0 {
		s.problem(BackendNotFound, "backend %s does not exist or has no TCP port, so its share goes to the others", name)
		return "it does not exist or has no TCP port"
	}
	fit := false
	for _, a := range s.ports[apex] {
		i := slices.IndexFunc(s.ports[backend], func(k *mesh.Service) bool { return k.Name.Port == a.Name.Port })
		if i < 0 {
			s.problem(BackendUnfit, "backend %s has no port %d, so its share there goes to the others", name, a.Name.Port)
		} else if !mesh.Splittable(a, s.ports[backend][i]) {
			s.problem(BackendUnfit, "backend %s is headless or speaks another protocol on port %d, so its share there goes to the others", name, a.Name.Port)
		} else {
			fit = true
		}
	}
	if !fit {
		return "it has no port that could stand for one of service " + apex.Name
	}
	return ""
}

// checkCallers reports callers that may call some of the backends but not all: they
// see other shares than those that are written.
func (s *split) checkCallers(apex mesh.ServiceName, backends []mesh.WeightedShare) {
	everyone := map[party]bool{}
	may := map[string]map[party]bool{}
	for _, k := range backends {
		may[k.Service] = s.callersOf(mesh.ServiceName{Namespace: apex.Namespace, Name: k.Service})
		for c := range may[k.Service] {
			everyone[c] = true
		}
	}
	for _, k := range backends {
		if has(may[k.Service], party{group: mesh.Everyone}) {
			continue
		}
		var without []string
		for c := range everyone {
			if !has(may[k.Service], c) {
				without = append(without, c.String())
			}
		}
		if len(without) > 0 {
			slices.Sort(without)
			s.problem(BackendNotAllowed, "backend %s may not be called by %s, so its share of their calls goes to the others", k.Service, some(without))
		}
	}
}

// A party is a caller: an identity, or all of a group.
type party struct {
	identity mesh.Identity
	group    mesh.Group
}

// String names the party.
func (p party) String() string {
	if p.group != "" {
		return p.group.String()
	}
	return p.identity.String()
}

// has reports whether callers include all of a party.
func has(callers map[party]bool, p party) bool {
	ns := cmp.Or(p.group, mesh.Group(p.identity.Namespace))
	return callers[p] || callers[party{group: ns}] || callers[party{group: mesh.Everyone}]
}

// callersOf returns who may call any of the servers of a Service.
func (s *split) callersOf(name mesh.ServiceName) map[party]bool {
	out := map[party]bool{}
	for _, port := range s.ports[name] {
		for _, server := range port.Identities {
			for _, c := range s.granted[server] {
				out[party{identity: c}] = true
			}
		}
		targets := port.Targets
		if len(targets) == 0 {
			targets = []mesh.Target{{Policy: port.Policy}}
		}
		for _, t := range targets {
			policy := cmp.Or(t.Policy, &mesh.PortPolicy{Mode: s.inMesh[name.Namespace].Mode})
			if policy.Mode == mesh.Permissive {
				out[party{group: mesh.Everyone}] = true
			}
			for _, g := range policy.Grants {
				for _, c := range g.Callers {
					out[party{identity: c}] = true
				}
				for _, group := range g.Groups {
					out[party{group: group}] = true
				}
			}
		}
	}
	return out
}

// some names the first few.
func some(names []string) string {
	const most = 3
	out := strings.Join(names[:min(len(names), most)], ", ")
	if n := len(names) - most; n > 0 {
		out += fmt.Sprintf(" and %d more", n)
	}
	return out
}
