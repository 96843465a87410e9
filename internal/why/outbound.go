package why

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// withoutBundle is what the caller's proxy does with an address that no bundle
// has: inside the ranges of Services it denies, elsewhere the egress setting of
// the caller's namespace holds.
func (c *call) withoutBundle(first netip.Addr) {
	ns := c.caller.Identity.Namespace
	m := c.modelled(first)
	inside := slices.ContainsFunc(c.out.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(first) })
	switch {
	case c.unproxied(first):
		c.refuseUnproxied(netip.AddrPortFrom(first, c.port).String())
	case m != nil && m.InMesh && c.onlyUnproxied(m):
		c.refuseUnproxied("service " + m.Name.String())
	case m != nil && m.InMesh && (inside || m.Headless && !c.out.AllowEgress):
		c.ungranted(m)
	case inside && m == nil:
		c.nothing(first)
	case !c.out.AllowEgress:
		c.deny(Client, EgressDenied, "The caller's proxy denies it: %s is outside the mesh, and namespace %s may not leave it, %s.",
			c.outsideName(), ns, c.setBy(ns, annotation.Egress))
		if c.podServing(first) {
			c.answer.Change = &Change{Text: "The address is a pod's of the mesh: call it through a Service instead, or headless by name."}
			return
		}
		c.answer.Change = &Change{
			Text:    "To let every pod of namespace " + ns + " leave the mesh:",
			Command: "kubectl annotate namespace " + ns + " --overwrite " + annotation.Egress + "=allow",
		}
	case inside:
		// A Service outside the mesh has a bundle wherever egress is allowed.
		c.nothing(first)
	case len(c.target.addresses) > 0:
		if m != nil && m.InMesh {
			c.note("No policy lets it call the headless service %s, so the caller's proxy knows no server there and passes the call on in plain text.", m.Name)
		} else {
			c.note("No Service of the mesh has this address, so the caller's proxy passes the call on in plain text.")
		}
		c.plain(c.target.addresses)
		if c.answer.Reason == NoProxies {
			c.allow(EgressAllowed, "%s is outside the mesh, and namespace %s may leave it, %s.", c.outsideName(), ns, c.setBy(ns, annotation.Egress))
		}
	default:
		c.allow(EgressAllowed, "%s is outside the mesh, and namespace %s may leave it, %s. The proxy passes the call on in plain text.",
			c.outsideName(), ns, c.setBy(ns, annotation.Egress))
	}
}

func (c *call) outsideName() string {
	if c.answer.Destination.Service != "" {
		return "service " + c.answer.Destination.Service
	}
	return c.host
}

func (c *call) podServing(a netip.Addr) bool {
	p := c.podAt(a)
	return p != nil && c.hasProxy(p)
}

// nothing says that no Service has the address and port.
func (c *call) nothing(a netip.Addr) {
	s := c.target.service
	if s == nil {
		c.deny(Client, NothingThere, "No Service has the address %s, and inside the ranges of Services nothing else is called.", a)
		return
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, strconv.Itoa(int(p.Port))+protocolSuffix(p))
	}
	c.deny(Client, NothingThere, "Service %s/%s has no TCP port %d that the mesh knows; it has %s.", s.Namespace, s.Name, c.port, list(ports))
}

func protocolSuffix(p corev1.ServicePort) string {
	if p.Protocol == "" || p.Protocol == corev1.ProtocolTCP {
		return ""
	}
	return "/" + string(p.Protocol)
}

// ungranted says that the caller's proxy was not even told about a Service.
func (c *call) ungranted(m *mesh.Service) {
	_, mode := c.modeOfService(m)
	who := "Namespace " + m.Name.Namespace
	if strings.HasPrefix(mode, "service ") {
		who = "Service " + m.Name.String()
	}
	if m.Unserved {
		c.deny(Client, NoMeshServers, "%s is enforced, and service %s has no pod whose account a policy could speak of.", who, m.Name)
		c.answer.Change = &Change{Text: "Start a pod of service " + m.Name.ServiceName.String() + " and ask again: what lets a call through is a policy for the pod's account."}
		return
	}
	servers, which := c.servers(m), "no pod of service "+m.Name.String()
	if m.Headless {
		servers, which = c.dialled(m), "no pod that this call of service "+m.Name.String()+" goes to"
	}
	if len(servers) == 0 {
		c.deny(Client, NoMeshServers, "%s is enforced, and %s has a proxy that could tell who calls.", who, which)
		c.answer.Change = &Change{Text: "No policy can allow this. Give the pods of service " + m.Name.ServiceName.String() + " proxies; outrigger why pod says why one has none."}
		return
	}
	c.deny(Client, NoGrant, "The caller's own proxy denies it: %s, and no policy lets %s call service %s.", mode, c.caller.Identity, m.Name)
	c.advise(servers)
}

// dialled returns what a call to a headless Service comes to: the pods at the addresses
// that are dialled.
func (c *call) dialled(m *mesh.Service) []serverPort {
	var out []serverPort
	for _, a := range c.target.addresses {
		e := endpointAt(m.Endpoints, a, c.port)
		if e == nil || e.Identity.IsZero() {
			continue
		}
		if s := (serverPort{identity: e.Identity, port: e.Port, protocol: m.Protocol, service: m.Name.ServiceName}); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// throughBundles asks the servers behind the ways that the caller's proxy has.
func (c *call) throughBundles(ways []way) {
	var parts []Backend
	for _, w := range ways {
		b := w.bundle
		c.answer.Destination.Service, c.answer.Destination.Protocol = b.Name.String(), protocolName(b.Protocol)
		switch {
		case b.Passthrough:
			c.passedThrough(b)
			return
		case b.Protocol.IsHTTP() && !c.isHTTP():
			c.deny(Client, NotHTTP, "Port %d of service %s is declared as %s, so the caller's proxy reads it and refuses what is not HTTP.", b.Name.Port, b.Name.ServiceName, b.Protocol)
			c.answer.Change = &Change{Text: "If the application speaks something else there, declare it: name the Service port tcp-…, or set its appProtocol."}
			return
		case b.Protocol == mesh.TCP || !c.isHTTP():
			parts = append(parts, c.connection(w)...)
		default:
			parts = append(parts, c.request(w)...)
		}
	}
	c.noteUnproxied(ways)
	rest := c.unbundled(ways[0].bundle)
	parts = append(parts, rest...)
	for i := range parts {
		parts[i].Percent /= float64(len(ways) + len(rest))
	}
	c.conclude(parts)
}

// unbundled are the addresses of a headless name that the caller's proxy was not
// told about, since no policy can speak of what has no proxy: the egress setting
// decides about them.
func (c *call) unbundled(b *mesh.Bundle) []Backend {
	var out []Backend
	for _, a := range c.target.addresses {
		if _, ok := c.bundleAt(a); ok || !b.Headless {
			continue
		}
		k := Backend{
			Service: b.Name.String(), Port: c.port, Transport: plain, Verdict: Denied, Side: Client, Reason: EgressDenied,
			Because: "the caller's proxy was told of no server at " + a.String() + ", and egress is denied",
		}
		if c.unproxied(a) {
			k.Reason = MutualTLSWanted
			k.Because = "what answers at " + a.String() + " has no proxy, and the caller calls nothing in the mesh's namespaces in plain text, " + c.wantsMutualTLS()
		} else if c.out.AllowEgress {
			k = c.plainServer(b.Name.String(), a, c.port)
		}
		k.Endpoints, k.Percent = 1, 100
		out = append(out, k)
	}
	return out
}

func (c *call) passedThrough(b *mesh.Bundle) {
	ns := c.caller.Identity.Namespace
	for _, m := range c.services(func(m *mesh.Service) bool { return m.Name == b.Name }) {
		if m.AlwaysReachable {
			c.allow(AlwaysReachable, "Every pod may call %s, whatever its namespace says of egress. The proxy passes the call on in plain text.", m.Name)
			return
		}
	}
	c.allow(EgressAllowed, "Service %s is outside the mesh, and namespace %s may leave it, %s. The proxy passes the call on in plain text.",
		b.Name, ns, c.setBy(ns, annotation.Egress))
}

// connection is a call that the proxies do not read.
func (c *call) connection(w way) []Backend {
	c.noteSplit(w.bundle, nil)
	endpoints := w.bundle.Endpoints
	if w.dialled != nil {
		endpoints = []mesh.Endpoint{*w.dialled}
	}
	return c.backends(w.bundle, endpoints, 100, false)
}

// request is a call that goes by the routes of a bundle.
func (c *call) request(w way) []Backend {
	i := slices.IndexFunc(w.bundle.Routes, func(r mesh.Route) bool { return len(misses(r.Match, c.asked)) == 0 })
	if i < 0 {
		return nil
	}
	route := &w.bundle.Routes[i]
	c.noteSplit(w.bundle, route)
	var total uint64
	for _, s := range route.Shares {
		total += uint64(s.Weight)
	}
	var out []Backend
	for _, s := range route.Shares {
		if s.Weight == 0 {
			continue
		}
		percent := 100 * float64(s.Weight) / float64(total)
		to, endpoints := w.bundle, w.bundle.Endpoints
		if s.To != w.bundle.Name {
			if to = c.bundleNamed(s.To); to == nil {
				continue
			}
			endpoints = to.Endpoints
		} else if w.dialled != nil {
			endpoints = []mesh.Endpoint{*w.dialled}
		}
		out = append(out, c.backends(to, endpoints, percent, true)...)
	}
	return out
}

func (c *call) bundleNamed(name mesh.PortName) *mesh.Bundle {
	i := slices.IndexFunc(c.out.Bundles, func(b *mesh.Bundle) bool { return b.Name == name })
	if i < 0 {
		return nil
	}
	return c.out.Bundles[i]
}

// noteSplit names the split that made a route, or the endpoints of a TCP bundle.
func (c *call) noteSplit(b *mesh.Bundle, r *mesh.Route) {
	for _, s := range c.Snapshot.Dump().Splits {
		if s.Apex != b.Name.ServiceName {
			continue
		}
		own := r != nil && len(r.Shares) == 1 && r.Shares[0].To == b.Name && len(s.Matches) > 0
		tcp := r == nil && (b.Headless || len(s.Matches) > 0 || b.Protocol != mesh.TCP)
		if own || tcp {
			c.note("%s does not share this call out.", s.Source)
			return
		}
		c.answer.Split = s.Source
		c.noteLeftOut(&s, b, r)
		return
	}
}

// backends groups endpoints by who answers there, and asks each group's proxy.
func (c *call) backends(b *mesh.Bundle, endpoints []mesh.Endpoint, percent float64, http bool) []Backend {
	live := live(endpoints)
	if len(live) == 0 {
		return []Backend{c.nobody(b, percent)}
	}
	var out []Backend
	var total float64
	for _, e := range live {
		weight := float64(max(e.Weight, 1))
		total += weight
		k := c.server(b, e, http)
		same := func(o Backend) bool {
			return o.Server == k.Server && o.Port == k.Port && o.Verdict == k.Verdict && o.Because == k.Because
		}
		i := slices.IndexFunc(out, same)
		if i < 0 {
			out, i = append(out, k), len(out)
		}
		out[i].Endpoints++
		out[i].Percent += weight
	}
	for i := range out {
		out[i].Percent *= percent / total
	}
	return out
}

// nobody is a share of the calls that no endpoint takes: there is none, or none
// that this caller may use.
func (c *call) nobody(b *mesh.Bundle, percent float64) Backend {
	out := Backend{
		Service: b.Name.String(), Percent: percent, Transport: mtls, Verdict: Allowed, Reason: NoEndpoint,
		Because: "it has no endpoint that is ready, so the caller's proxy answers 503",
	}
	if b.Protocol == mesh.TCP && c.answer.Split != "" {
		return out // its endpoints are those of the backends
	}
	ns, _ := c.meshNamespace(b.Name.Namespace)
	for _, m := range c.services(func(m *mesh.Service) bool { return m.Name == b.Name }) {
		mode := ns.Mode
		if m.Policy != nil {
			mode = m.Policy.Mode
		}
		switch {
		case m.Unserved:
			out.Because = "it has no pod, so the caller's proxy answers 503"
			if mode == mesh.Enforced {
				out.Because += "; whether the call is allowed depends on the account of its first pod"
			}
		case mode == mesh.Enforced && len(b.Identities) == 0:
			out.Verdict, out.Side, out.Reason = Denied, Client, NoGrant
			out.Because = fmt.Sprintf("namespace %s is enforced, and no policy lets %s call this service", ns.Name, c.caller.Identity)
		case mode == mesh.Permissive && !c.out.AllowEgress && slices.ContainsFunc(m.Endpoints, func(e mesh.Endpoint) bool { return e.Outside }):
			out.Verdict, out.Side, out.Reason, out.Transport = Denied, Client, EgressDenied, plain
			out.Because = fmt.Sprintf("its endpoints are outside the mesh, and namespace %s may not leave it, %s",
				c.caller.Identity.Namespace, c.setBy(c.caller.Identity.Namespace, annotation.Egress))
		}
	}
	return out
}

// live returns the endpoints that get new calls.
func live(in []mesh.Endpoint) []mesh.Endpoint {
	out := slices.DeleteFunc(slices.Clone(in), func(e mesh.Endpoint) bool { return e.Draining })
	if len(out) == 0 {
		return in
	}
	return out
}
