package ingest

import (
	"cmp"
	"slices"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const serviceAccount = "ServiceAccount"

// targets turns the TrafficTargets of the mesh's namespaces into grants.
func (b *builder) targets() {
	b.granted = map[mesh.Identity][]mesh.Identity{}
	for _, o := range b.objs.TrafficTargets {
		if !b.member(o.Namespace) {
			continue
		}
		t := target{builder: b, o: o, ref: ref(accessv1alpha3.GroupVersion().String(), "TrafficTarget", o)}
		if g, ok := t.grant(); ok {
			b.parts.Grants = append(b.parts.Grants, g)
			b.granted[g.Server] = append(b.granted[g.Server], g.Callers...)
		}
	}
}

// A target is a TrafficTarget while it is read.
type target struct {
	*builder
	o   *accessv1alpha3.TrafficTarget
	ref ObjectRef
}

func (t *target) problem(reason Reason, format string, args ...any) {
	t.found.add(t.ref, reason, format, args...)
}

// grant returns what the TrafficTarget allows, or false if that is nothing.
func (t *target) grant() (mesh.Grant, bool) {
	d := t.o.Spec.Destination
	if d.Kind != serviceAccount {
		t.problem(UnsupportedKind, "the destination is a %s; only ServiceAccount is supported", d.Kind)
		return mesh.Grant{}, false
	}
	if ns := cmp.Or(d.Namespace, t.o.Namespace); ns != t.o.Namespace {
		t.problem(OtherNamespace, "the destination is in namespace %s; it must be in that of the TrafficTarget", ns)
		return mesh.Grant{}, false
	}
	g := mesh.Grant{
		Source:  t.ref.String(),
		Server:  mesh.Identity{Namespace: t.o.Namespace, ServiceAccount: d.Name},
		Callers: t.callers(),
	}
	if len(g.Callers) == 0 {
		t.problem(NoSources, "it has no source that can be used, so it allows nothing")
		return mesh.Grant{}, false
	}
	port, err := annotation.TargetPort(t.o.Annotations)
	if err != nil {
		t.problem(BadAnnotation, "%v; it allows nothing", err)
		return mesh.Grant{}, false
	}
	return g, t.rules(&g, port)
}

func (t *target) callers() []mesh.Identity {
	var out []mesh.Identity
	for _, s := range t.o.Spec.Sources {
		if s.Kind != serviceAccount {
			t.problem(UnsupportedKind, "source %s is a %s; only ServiceAccount is supported", s.Name, s.Kind)
			continue
		}
		out = append(out, mesh.Identity{Namespace: cmp.Or(s.Namespace, t.o.Namespace), ServiceAccount: s.Name})
	}
	return out
}

// rules adds what the rules allow on a port of the destination, or on all where
// port is zero, and reports whether they allow anything.
//
// HTTP rules and TCP ports narrow each other where both are given. So when all
// of one kind come to nothing, or a rule cannot be understood, what is left must
// not stand alone: it could then allow more than was written.
func (t *target) rules(g *mesh.Grant, port uint16) bool {
	var http, tcp bool
	for _, r := range t.o.Spec.Rules {
		switch r.Kind {
		case "HTTPRouteGroup":
			http = true
			g.HTTP = append(g.HTTP, t.requests(r)...)
		case "TCPRoute":
			tcp = true
			g.Ports = append(g.Ports, t.tcpPorts(r, port)...)
		default:
			t.problem(UnsupportedKind, "rule %s is a %s; only HTTPRouteGroup and TCPRoute are supported, so it allows nothing", r.Name, r.Kind)
			return false
		}
	}
	switch {
	case http && len(g.HTTP) == 0:
		t.problem(NothingAllowed, "its HTTP rules come to nothing, so it allows nothing")
		return false
	case tcp && len(g.Ports) == 0:
		t.problem(NothingAllowed, "its TCP rules come to nothing, so it allows nothing")
		return false
	case !http && !tcp:
		t.problem(NothingAllowed, "it has no rule that can be used, so it allows nothing")
		return false
	}
	if !tcp && port != 0 {
		g.Ports, g.Narrow = []uint16{port}, true
	}
	return true
}

// tcpPorts returns the ports that a rule opens, of those that the target is narrowed
// to. SMI would have a TCPRoute without ports mean all of them; here it opens none,
// or where it is one that cannot list any, the destination's port.
func (t *target) tcpPorts(r accessv1alpha3.Rule, only uint16) []uint16 {
	route, ok := t.tcpRoutes[routeName{t.o.Namespace, r.Name}]
	switch {
	case !ok:
		t.problem(RouteNotFound, "TCPRoute %s does not exist in this namespace, so it opens no port", r.Name)
		return nil
	case route.ofDestination && only == 0:
		t.problem(NoPorts, "TCPRoute %s means the destination's port, and the destination has none, so it opens no port; list ports there, or annotate this object with %s", r.Name, annotation.DestinationPort)
		return nil
	case route.ofDestination:
		return []uint16{only}
	case len(route.ports) == 0:
		t.problem(NoPorts, "TCPRoute %s lists no port, so it opens none", r.Name)
		return nil
	case only == 0:
		return route.ports
	case slices.Contains(route.ports, only):
		return []uint16{only}
	}
	t.problem(NoPorts, "TCPRoute %s does not list port %d, which is the destination's, so it opens no port", r.Name, only)
	return nil
}

// requests returns the requests that a rule allows. As in OSM, a rule that lists
// no match allows none, although SMI would have it mean all: a manifest must not
// allow more here than where it comes from.
func (t *target) requests(r accessv1alpha3.Rule) []mesh.HTTPMatch {
	g, ok := t.groups[routeName{t.o.Namespace, r.Name}]
	if !ok {
		t.problem(RouteNotFound, "HTTPRouteGroup %s does not exist in this namespace, so it allows no request", r.Name)
		return nil
	}
	if len(r.Matches) == 0 {
		t.problem(NoMatches, "the rule for HTTPRouteGroup %s lists no match, so it allows no request; list them by name", r.Name)
	}
	var out []mesh.HTTPMatch
	for _, name := range r.Matches {
		m, ok := g[name]
		if !ok {
			t.problem(MatchNotFound, "HTTPRouteGroup %s has no usable match %q", r.Name, name)
		}
		out = append(out, m...)
	}
	return out
}
