package why

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const (
	mtls  = "mtls"
	plain = "plain"
)

// server asks the proxy at an endpoint, as it is reached through a bundle. http
// says that the caller's proxy read the call as HTTP.
func (c *call) server(b *mesh.Bundle, e mesh.Endpoint, http bool) Backend {
	out := Backend{Service: b.Name.String(), Port: e.Port, Transport: mtls, Server: e.Identity.String()}
	if e.Identity.IsZero() {
		out.Server, out.Transport = "", plain
		out.Verdict, out.Reason, out.Because = Allowed, PlainServer, "it has no proxy, and is called in plain text"
		return out
	}
	p := c.inbound(e)
	reads := p != nil && (p.Protocol.IsHTTP() || http && p.Protocol == mesh.Auto)
	switch {
	case p == nil:
		out.Verdict, out.Reason, out.Because = Denied, PortClosed, fmt.Sprintf("it serves no port %d to the mesh", e.Port)
	case reads && !c.isHTTP():
		// Another Service declares the same port of the pod as HTTP.
		out.Verdict, out.Reason = Denied, NotHTTP
		out.Because = fmt.Sprintf("its port %d is declared as %s, so its proxy reads it and refuses what is not HTTP", e.Port, p.Protocol)
	case reads && c.escaped():
		out.Verdict, out.Reason, out.Because = Denied, EscapedSlash, "its proxy answers 400: "+errEscaped.Error()
	case p.Mode == mesh.Permissive:
		out.Verdict, out.Reason, out.Because = Allowed, PermissiveMode, c.modeOf(e.Identity, p)
	case reads:
		c.byRules(&out, p)
	default:
		c.byCallers(&out, p, e)
	}
	return out
}

// inbound returns the port of the workload at an endpoint, or nil.
func (c *call) inbound(e mesh.Endpoint) *mesh.InboundPort {
	if p := c.podAt(e.Address); p != nil {
		if v, ok := c.Snapshot.View(proxyID(p)); ok {
			return portOf(v.Inbound, e.Port)
		}
	}
	for _, id := range c.Snapshot.Proxies() {
		w, _ := c.Snapshot.Workload(id)
		if w.Identity != e.Identity {
			continue
		}
		v, _ := c.Snapshot.View(id)
		if p := portOf(v.Inbound, e.Port); p != nil {
			return p
		}
	}
	return nil
}

func portOf(in *mesh.Inbound, port uint16) *mesh.InboundPort {
	i := slices.IndexFunc(in.Ports, func(p mesh.InboundPort) bool { return p.Port == port })
	if i < 0 {
		return nil
	}
	return &in.Ports[i]
}

// byRules is the access list of an HTTP port: any rule that covers the request and
// names the caller is enough.
func (c *call) byRules(out *Backend, p *mesh.InboundPort) {
	for _, r := range p.Rules {
		if r.Has(c.caller.Identity) && len(misses(r.Match, c.seen)) == 0 {
			out.Verdict, out.Reason = Allowed, ByRule
			out.Because = fmt.Sprintf("by %s, rule %s", r.Source, describe(r.Match))
			return
		}
	}
	out.Verdict, out.Reason = Denied, NoRule
	out.Because = fmt.Sprintf("its proxy answers 403: no rule allows %s %s %s", c.caller.Identity, c.seen.method, c.seen.path)
}

// byCallers is the list of names that a TCP port accepts in the handshake.
func (c *call) byCallers(out *Backend, p *mesh.InboundPort, e mesh.Endpoint) {
	if !p.MayConnect(c.caller.Identity) {
		out.Verdict, out.Reason = Denied, NoGrant
		out.Because = fmt.Sprintf("its proxy refuses the handshake: no policy opens TCP port %d to %s", p.Port, c.caller.Identity)
		return
	}
	out.Verdict, out.Reason = Allowed, ByTCPGrant
	var sources []string
	for _, g := range c.Snapshot.Dump().Grants {
		if g.Server == e.Identity && slices.Contains(g.Callers, c.caller.Identity) && opensTCP(g, p.Port, p.Protocol) {
			sources = append(sources, g.Source)
		}
	}
	for _, g := range c.portGrants(e.Address, e.Identity, p.Port) {
		if g.Has(c.caller.Identity) {
			sources = append(sources, g.Source)
		}
	}
	out.Because = fmt.Sprintf("by %s, which opens TCP port %d to it", list(slices.Compact(sources)), p.Port)
}

// opensTCP reports whether a grant lets connections in; see [mesh.Grant].
func opensTCP(g mesh.Grant, port uint16, p mesh.Protocol) bool {
	return !p.IsHTTP() && !g.Narrow && slices.Contains(g.Ports, port) && (p == mesh.TCP || len(g.HTTP) == 0)
}

// plain is a call without a proxy of the caller: what answers at the addresses
// decides alone.
func (c *call) plain(addresses []netip.Addr) {
	var parts []Backend
	for _, a := range addresses {
		m := c.modelled(a)
		if m != nil && !m.Headless {
			for _, e := range live(m.Endpoints) {
				parts = merge(parts, c.plainServer(m.Name.String(), e.Address, e.Port))
			}
			continue
		}
		service := ""
		if m != nil {
			service = m.Name.String()
		}
		parts = merge(parts, c.plainServer(service, a, c.port))
	}
	if len(parts) == 0 {
		c.allow(NoProxies, "No proxy of the mesh is in the way of this call.")
		return
	}
	n := 0
	for _, p := range parts {
		n += p.Endpoints
	}
	for i := range parts {
		parts[i].Percent = 100 * float64(parts[i].Endpoints) / float64(n)
	}
	c.conclude(parts)
}

// merge counts k to one that is alike.
func merge(parts []Backend, k Backend) []Backend {
	for i := range parts {
		if parts[i].Server == k.Server && parts[i].Port == k.Port && parts[i].Because == k.Because {
			parts[i].Endpoints++
			return parts
		}
	}
	k.Endpoints = 1
	return append(parts, k)
}

// plainServer asks the proxy at an address, if there is one, about plain text.
func (c *call) plainServer(service string, a netip.Addr, port uint16) Backend {
	out := Backend{Service: service, Port: port, Transport: plain, Verdict: Allowed, Reason: NoProxies, Because: "it has no proxy"}
	pod := c.podAt(a)
	if pod == nil || !c.hasProxy(pod) {
		return out
	}
	id := identityOf(pod)
	out.Server = id.String()
	v, _ := c.Snapshot.View(proxyID(pod))
	p := portOf(v.Inbound, port)
	switch {
	case c.unredirected(pod, port):
		out.Because = fmt.Sprintf("port %d of its pods is excluded from redirection, so calls come to it without its proxy", port)
	case p == nil:
		out.Verdict, out.Reason, out.Because = Denied, PortClosed, fmt.Sprintf("no Service leads to port %d of pod %s/%s, so its proxy closes the connection", port, pod.Namespace, pod.Name)
	case p.PlainText && p.Protocol.IsHTTP() && c.scheme == "tcp":
		out.Verdict, out.Reason = Denied, NotHTTP
		out.Because = fmt.Sprintf("port %d is declared as %s, so its proxy reads what comes in plain text, and refuses what is not HTTP", port, p.Protocol)
	case p.PlainText && p.Protocol.IsHTTP() && c.isHTTP() && c.escaped():
		out.Verdict, out.Reason, out.Because = Denied, EscapedSlash, "its proxy answers 400: "+errEscaped.Error()
	case p.PlainText:
		out.Reason = PermissiveMode
		out.Because = fmt.Sprintf("namespace %s is permissive, and takes plain text too, %s", id.Namespace, c.plainBy(id, p))
		if c.byService(p.ModeBy, annotation.TrafficPolicy) != "" || p.PlainTextBy != "" {
			out.Because = fmt.Sprintf("%s, and takes plain text too, %s", c.modeOf(id, p), c.plainBy(id, p))
		}
	default:
		out.Verdict, out.Reason = Denied, PlainRefused
		out.Because = fmt.Sprintf("its proxy wants mutual TLS and closes the connection: namespace %s is %s, and takes no plain text", id.Namespace, p.Mode)
		if by := c.byService(p.ModeBy, annotation.TrafficPolicy); by != "" || p.PlainTextBy != "" {
			out.Because = fmt.Sprintf("its proxy wants mutual TLS and closes the connection: %s, and takes no plain text", c.modeOf(id, p))
			if p.PlainTextBy != "" {
				out.Because += ", " + c.plainBy(id, p)
			}
		}
	}
	return out
}

// conclude makes one verdict of those of the backends.
func (c *call) conclude(parts []Backend) {
	c.answer.Backends = parts
	var bad, good *Backend
	for i := range parts {
		if p := &parts[i]; p.Verdict == Denied && bad == nil {
			bad = p
		} else if p.Verdict == Allowed && good == nil {
			good = p
		}
	}
	for i := range parts {
		if p := &parts[i]; p.Verdict == Denied && p.Side == "" {
			p.Side = Server
		}
	}
	switch {
	case bad == nil && good == nil:
		c.allow(NoEndpoint, "No backend has a share of this call, so the caller's proxy answers 503.")
	case bad == nil:
		c.allow(good.Reason, "%s", sentence(good.Because))
	case good == nil:
		c.deny(bad.Side, bad.Reason, "%s denies it: %s.", map[Side]string{Client: "The caller's proxy", Server: "The server"}[bad.Side], bad.Because)
	default:
		c.deny(bad.Side, bad.Reason, "%s: %s.", map[Side]string{Client: "The caller's proxy denies a part of it", Server: "Some servers deny it"}[bad.Side], bad.Because)
		c.answer.Verdict = Partly
	}
	if bad != nil {
		c.suggest(bad.Reason)
	}
}

func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
