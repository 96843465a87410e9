package ingest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A namespaceWord is what a namespace of the mesh says about access to its pods,
// besides what is in the model.
type namespaceWord struct {
	ref  ObjectRef
	mode mesh.Mode
	mtls annotation.Demand
	from annotation.Callers
	// Services of it say otherwise than this namespace.
	opened, closed bool
}

// A serviceWord is what a Service says about access to the ports that it leads to.
type serviceWord struct {
	ref      ObjectRef
	ns       *namespaceWord
	mode     mesh.Mode // the namespace's, unless it is said
	modeSaid bool
	mtls     annotation.ServiceDemand
	from     annotation.Callers
}

// A lead is a Service port that leads to a port of a pod.
type lead struct {
	*serviceWord
	port uint16
}

// A targetPod is a port of a pod that a Service port leads to.
type targetPod struct {
	*pod
	port uint16
}

// serviceWord reads what a Service says.
func (b *builder) serviceWord(o *corev1.Service) *serviceWord {
	w := &serviceWord{ref: ref("v1", "Service", o), ns: b.namespaceWords[o.Namespace]}
	// What is not allowed was reported, and the strictest holds.
	w.mode, w.modeSaid, _ = annotation.ServiceMode(o.Annotations)
	w.mtls, _ = annotation.ServiceMTLS(o.Annotations)
	w.from, _ = annotation.ServiceAllowFrom(o.Annotations)
	if !w.modeSaid {
		w.mode = w.ns.mode
	}
	w.ns.opened = w.ns.opened || w.modeSaid && w.mode == mesh.Permissive
	w.ns.closed = w.ns.closed || w.modeSaid && w.mode == mesh.Enforced
	for _, port := range slices.Sorted(maps.Keys(w.mtls.Ports)) {
		if !slices.ContainsFunc(tcpPorts(o), func(p *corev1.ServicePort) bool { return p.Port == int32(port) }) {
			b.found.add(w.ref, BadAnnotation, "service annotation %s names port %d, and the Service has no such TCP port", annotation.MTLS, port)
		}
	}
	b.idleServiceWord(w)
	return w
}

// idleServiceWord reports what a Service says to no effect.
func (b *builder) idleServiceWord(w *serviceWord) {
	lenient := w.mtls.All == annotation.Lenient || slices.Contains(slices.Collect(maps.Values(w.mtls.Ports)), annotation.Lenient)
	if lenient && w.mode == mesh.Enforced {
		b.found.add(w.ref, NoEffect, plainToNobody, annotation.MTLS)
	}
	if !w.from.Nobody() && w.mode == mesh.Permissive {
		b.found.add(w.ref, NoEffect, everyoneMay, annotation.AllowFrom)
	}
}

const (
	plainToNobody = "%s=permissive lets nobody in, because the traffic policy is enforced, and a client without an identity can have no grant"
	everyoneMay   = "%s adds nothing, because the traffic policy is permissive: everyone in the mesh may call"
)

// access finds out what holds on each port of each pod, once the Services have said
// where they lead to.
func (b *builder) access() {
	b.policies = map[string]*mesh.PortPolicy{}
	b.spoken()
	for _, p := range b.byName {
		if p.hasProxy {
			b.podAccess(p)
		}
	}
	for _, w := range b.namespaceWords {
		if w.mtls == annotation.Lenient && w.mode == mesh.Enforced && !w.opened {
			b.found.add(w.ref, NoEffect, plainToNobody, annotation.MTLS)
		}
		if !w.from.Nobody() && w.mode == mesh.Permissive && !w.closed {
			b.found.add(w.ref, NoEffect, everyoneMay, annotation.AllowFrom)
		}
	}
	unmeshed := b.withoutProxy()
	b.ports = make(map[mesh.ServiceName][]*mesh.Service, len(b.ports))
	for i := range b.parts.Services {
		if svc := &b.parts.Services[i]; svc.InMesh {
			b.serviceAccess(svc, unmeshed)
			b.ports[svc.Name.ServiceName] = append(b.ports[svc.Name.ServiceName], svc)
		}
	}
}

// spoken notes which service accounts TrafficTargets speak about, whether or not
// they then allow anything: for these, SMI alone says who may call.
func (b *builder) spoken() {
	b.spokenOf = map[mesh.Identity]string{}
	for _, o := range b.objs.TrafficTargets {
		d := o.Spec.Destination
		if !b.member(o.Namespace) || d.Kind != serviceAccount || cmp.Or(d.Namespace, o.Namespace) != o.Namespace {
			continue
		}
		id := mesh.Identity{Namespace: o.Namespace, ServiceAccount: d.Name}
		if first, ok := b.spokenOf[id]; !ok || o.Name < first {
			b.spokenOf[id] = o.Name
		}
	}
}

// podAccess finds out what holds on the ports of a pod with a proxy.
func (b *builder) podAccess(p *pod) {
	p.policies = map[uint16]*mesh.PortPolicy{}
	open := false
	for port, leads := range p.leads {
		policy := b.policy(leads, p.mtls, p.identity, port)
		p.policies[port] = b.unlessUsual(leads[0].ns, policy)
		open = open || policy.Mode == mesh.Permissive
	}
	ns := b.namespaceWords[p.Namespace]
	if p.mtls == annotation.Lenient && len(p.leads) > 0 && !open && ns.mtls != annotation.Strict {
		b.found.add(ref("v1", "Pod", p), NoEffect, plainToNobody, annotation.MTLS)
	}
}

// policy returns what holds on a port of a server that Services lead to, with the
// Problems of those that do not get what they say. The strictest of their modes
// holds; for mutual TLS, each Service's word for its port counts before the pod's, and
// that before the namespace's. Of the callers that they allow each may call, and the
// namespace's if no Service names any.
func (b *builder) policy(leads []lead, own annotation.Demand, server mesh.Identity, port uint16) mesh.PortPolicy {
	out := mesh.PortPolicy{Mode: mesh.Permissive, PlainText: true}
	var enforcing, strict *lead // the first by name; one that says so, if any
	for i := range leads {
		l := &leads[i]
		if l.mode == mesh.Enforced && (enforcing == nil || l.modeSaid && !enforcing.modeSaid) {
			out.Mode, enforcing = mesh.Enforced, l
		}
		if l.demand(own) != annotation.Lenient && (strict == nil || l.mtls.Of(l.port) != "" && strict.mtls.Of(strict.port) == "") {
			out.PlainText, strict = false, l
		}
	}
	for i := range leads {
		l := &leads[i]
		if enforcing != nil && l.modeSaid && l.mode == mesh.Permissive {
			b.conflict(l, enforcing, port, "is enforced")
		}
		if strict != nil && l.mtls.Of(l.port) == annotation.Lenient {
			b.conflict(l, strict, port, "wants mutual TLS")
		}
		if enforcing == nil && l.modeSaid && out.ModeBy == "" {
			out.ModeBy = l.ref.String() + " annotation"
		}
		if strict == nil && l.mtls.Of(l.port) != "" && out.PlainTextBy == "" {
			out.PlainTextBy = l.ref.String() + " annotation"
		}
	}
	if enforcing != nil && enforcing.modeSaid {
		out.ModeBy = enforcing.ref.String() + " annotation"
	}
	if strict != nil && strict.mtls.Of(strict.port) != "" {
		out.PlainTextBy = strict.ref.String() + " annotation"
	}
	if out.PlainTextBy == "" && own != annotation.DemandNothing {
		out.PlainTextBy = mesh.ByPod
	}
	out.Grants = b.allowFrom(leads, server)
	return out
}

// demand is what holds about mutual TLS on the way of a lead, which is nothing
// where nobody says anything.
func (l *lead) demand(own annotation.Demand) annotation.Demand {
	return cmp.Or(l.mtls.Of(l.port), own, l.ns.mtls)
}

func (b *builder) conflict(l, other *lead, port uint16, says string) {
	b.found.add(l.ref, PolicyConflict, "port %d leads to port %d of pods to which service %s leads too, which %s; so that holds there",
		l.port, port, other.ref.Namespace+"/"+other.ref.Name, says)
}

// allowFrom returns the grants that annotations make for a port of a server.
func (b *builder) allowFrom(leads []lead, server mesh.Identity) []mesh.PortGrant {
	target, spoken := b.spokenOf[server]
	var out []mesh.PortGrant
	named := false
	for _, l := range leads {
		named = named || l.from.Said
		switch {
		case l.from.Nobody():
		case spoken:
			b.found.add(l.ref, NoEffect, "%s adds nothing for service account %s, because TrafficTarget %s says who may call it", annotation.AllowFrom, server.ServiceAccount, target)
		default:
			out = append(out, grantOf(l.ref, l.from))
		}
	}
	if ns := leads[0].ns; !named && !spoken && !ns.from.Nobody() {
		out = append(out, grantOf(ns.ref, ns.from))
	}
	return slices.CompactFunc(out, func(a, b mesh.PortGrant) bool { return a.Source == b.Source })
}

func grantOf(by ObjectRef, c annotation.Callers) mesh.PortGrant {
	return mesh.PortGrant{Source: by.String() + " allow-from", Callers: c.Identities, Groups: c.Groups}
}

// unlessUsual returns the policy, one for all that are equal, or nil where it is
// what the namespace says.
func (b *builder) unlessUsual(ns *namespaceWord, p mesh.PortPolicy) *mesh.PortPolicy {
	if p.Mode == ns.mode && p.PlainText == (ns.mtls == annotation.Lenient) && p.ModeBy == "" && p.PlainTextBy == "" && len(p.Grants) == 0 {
		return nil
	}
	text, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("ingest: the model must encode: %v", err))
	}
	if b.policies[string(text)] == nil {
		b.policies[string(text)] = &p
	}
	return b.policies[string(text)]
}

// A place is where something without a proxy serves a Service of a namespace.
type place struct {
	namespace string
	at        netip.AddrPort
}

func placeOf(svc *mesh.Service, e *mesh.Endpoint) place {
	return place{svc.Name.Namespace, netip.AddrPortFrom(e.Address, e.Port)}
}

// withoutProxy returns what holds where Services of the mesh are served without a
// proxy. Only callers can enforce it.
func (b *builder) withoutProxy() map[place]*mesh.PortPolicy {
	leads := map[place][]lead{}
	for i := range b.parts.Services {
		svc := &b.parts.Services[i]
		for j := range svc.Endpoints {
			if e := &svc.Endpoints[j]; svc.InMesh && e.Identity.IsZero() {
				at := placeOf(svc, e)
				leads[at] = append(leads[at], lead{b.serviceWords[svc.Name.ServiceName], svc.Name.Port})
			}
		}
	}
	out := make(map[place]*mesh.PortPolicy, len(leads))
	for at, l := range leads {
		p := b.policy(l, annotation.DemandNothing, mesh.Identity{}, at.at.Port())
		// Nothing there takes part in the rest.
		out[at] = b.unlessUsual(l[0].ns, mesh.PortPolicy{Mode: p.Mode, ModeBy: p.ModeBy, PlainText: l[0].ns.mtls == annotation.Lenient})
	}
	return out
}

// serviceAccess notes on a Service port what holds on the ports that it leads to.
func (b *builder) serviceAccess(svc *mesh.Service, withoutProxy map[place]*mesh.PortPolicy) {
	w := b.serviceWords[svc.Name.ServiceName]
	alone := []lead{{w, svc.Name.Port}}
	svc.Policy = b.unlessUsual(w.ns, b.policy(alone, annotation.DemandNothing, mesh.Identity{}, 0))
	for i := range svc.Endpoints {
		e := &svc.Endpoints[i]
		if e.Identity.IsZero() {
			e.Policy = withoutProxy[placeOf(svc, e)]
		} else if p := b.proxyAt[e.Address]; p != nil {
			e.Policy = p.policies[e.Port]
		}
	}
	targets := b.targetPods[svc.Name]
	if svc.Policy == nil && !slices.ContainsFunc(targets, func(t targetPod) bool { return t.policies[t.port] != nil }) {
		return
	}
	for _, t := range targets {
		svc.Targets = append(svc.Targets, mesh.Target{Identity: t.identity, Port: t.port, Policy: t.policies[t.port]})
	}
}
