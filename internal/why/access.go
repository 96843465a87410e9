package why

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// modeOf says which mode holds on a port of a server, and by whose word.
func (c *call) modeOf(server mesh.Identity, p *mesh.InboundPort) string {
	if by := c.byService(p.ModeBy, annotation.TrafficPolicy); by != "" {
		return fmt.Sprintf("port %d is %s, %s", p.Port, p.Mode, by)
	}
	return fmt.Sprintf("namespace %s is %s, %s", server.Namespace, p.Mode, c.setBy(server.Namespace, annotation.TrafficPolicy))
}

// plainBy says by whose word a port takes plain text, or does not.
func (c *call) plainBy(server mesh.Identity, p *mesh.InboundPort) string {
	if by := c.byService(p.PlainTextBy, annotation.MTLS); by != "" {
		return by
	}
	if p.PlainTextBy == mesh.ByPod {
		return "by the annotation " + annotation.MTLS + " of its pod"
	}
	return c.setBy(server.Namespace, annotation.MTLS)
}

// byService says what a Service says, if source is one.
func (w World) byService(source, key string) string {
	o := w.annotated(source)
	if o == nil {
		return ""
	}
	value, name := o.Annotations[key], o.Namespace+"/"+o.Name
	_, _, mode := annotation.ServiceMode(o.Annotations)
	_, mtls := annotation.ServiceMTLS(o.Annotations)
	if err := map[string]error{annotation.TrafficPolicy: mode, annotation.MTLS: mtls}[key]; err != nil {
		return fmt.Sprintf("because the annotation %s=%s of Service %s is nothing that is known, and so the strictest holds", key, value, name)
	}
	return fmt.Sprintf("by the annotation %s=%s of Service %s", key, value, name)
}

// annotated returns the Service that a source names, as "Service shop/web annotation",
// or nil.
func (w World) annotated(source string) *corev1.Service {
	rest, ok := strings.CutPrefix(source, "Service ")
	name, _, _ := strings.Cut(rest, " ")
	ns, name, _ := strings.Cut(name, "/")
	if !ok {
		return nil
	}
	return w.service(name, ns)
}

// modeOfService says which mode holds for a Service of the mesh, and by whose word.
func (c *call) modeOfService(m *mesh.Service) (mesh.Mode, string) {
	n, _ := c.meshNamespace(m.Name.Namespace)
	in := &mesh.InboundPort{Mode: n.Mode}
	if m.Policy != nil {
		in.Mode, in.ModeBy = m.Policy.Mode, m.Policy.ModeBy
	}
	for _, t := range m.Targets {
		if t.Policy != nil && t.Policy.Mode == mesh.Enforced && in.Mode == mesh.Permissive {
			in.Mode, in.ModeBy = t.Policy.Mode, t.Policy.ModeBy
		}
	}
	if by := c.byService(in.ModeBy, annotation.TrafficPolicy); by != "" {
		return in.Mode, fmt.Sprintf("service %s is %s, %s", m.Name, in.Mode, by)
	}
	return in.Mode, c.modeOf(mesh.Identity{Namespace: n.Name}, in)
}

// portGrants returns what annotations grant on a port of the pods of an identity: at
// an address, if a pod has it.
func (c *call) portGrants(a netip.Addr, server mesh.Identity, port uint16) []mesh.PortGrant {
	if p := c.podAt(a); p != nil {
		if w, ok := c.Snapshot.Workload(proxyID(p)); ok {
			return grantsOf(w, port)
		}
	}
	for _, w := range c.Snapshot.Dump().Workloads {
		if found := grantsOf(w, port); w.Identity == server && len(found) > 0 {
			return found
		}
	}
	return nil
}

func grantsOf(w mesh.Workload, port uint16) []mesh.PortGrant {
	for _, p := range w.Ports {
		if p.Port == port && p.Policy != nil {
			return p.Policy.Grants
		}
	}
	return nil
}

// letIn says whom a grant of an annotation lets in.
func letIn(g mesh.PortGrant) string {
	var names []string
	for _, group := range g.Groups {
		names = append(names, group.String())
	}
	if len(g.Callers) > 0 {
		names = append(names, some(g.Callers))
	}
	return list(names)
}

// adviseAllowFrom adds what annotations come near to, and reports whether some make
// grants to one of the servers' accounts: then a TrafficTarget for it would end them.
func (c *call) adviseAllowFrom(servers []serverPort) (near []NearMiss, inEffect bool) {
	add := func(object, format string, args ...any) {
		miss := NearMiss{Object: object, Differs: fmt.Sprintf(format, args...), far: 1}
		if !slices.Contains(near, miss) {
			near = append(near, miss)
		}
	}
	for _, s := range servers {
		for _, g := range c.portGrants(netip.Addr{}, s.identity, s.port) {
			if !g.Has(c.caller.Identity) {
				add(g.Source, "it lets %s in, not %s", letIn(g), c.caller.Identity)
			}
		}
		accounts := slices.ContainsFunc(c.Snapshot.Dump().Workloads, func(w mesh.Workload) bool {
			return w.Identity == s.identity && slices.ContainsFunc(w.Ports, func(p mesh.WorkloadPort) bool { return p.Policy != nil && len(p.Policy.Grants) > 0 })
		})
		inEffect = inEffect || accounts
		if source, from := c.allowFrom(s); from.Said && !accounts && (mesh.PortGrant{Callers: from.Identities, Groups: from.Groups}).Has(c.caller.Identity) {
			add(source, "it names %s, but TrafficTargets speak about service account %s, and say alone who may call it", c.caller.Identity, s.identity)
		}
	}
	return near, inEffect
}

// allowFrom returns whom annotations let in at a port: those of the Service, or else
// of its namespace; and which object says so.
func (c *call) allowFrom(s serverPort) (string, annotation.Callers) {
	if o := c.service(s.service.Name, s.service.Namespace); o != nil {
		if from, _ := annotation.ServiceAllowFrom(o.Annotations); from.Said {
			return "Service " + s.service.String() + " allow-from", from
		}
	}
	if n := c.namespace(s.service.Namespace); n != nil {
		from, _ := annotation.NamespaceAllowFrom(n.Annotations)
		return "Namespace " + n.Name + " allow-from", from
	}
	return "", annotation.Callers{}
}

// addToAllowFrom is what lets a caller in where annotations, and not SMI, say who may
// call: it adds the caller to what the Services say, who start from what holds now.
func (c *call) addToAllowFrom(servers []serverPort) *Change {
	var commands []string
	for _, s := range servers {
		_, from := c.allowFrom(s)
		var entries []string
		for _, g := range from.Groups {
			entries = append(entries, string(g))
		}
		for _, id := range append(from.Identities, c.caller.Identity) {
			entries = append(entries, id.String())
		}
		command := fmt.Sprintf("kubectl annotate service %s -n %s --overwrite '%s=%s'", s.service.Name, s.service.Namespace, annotation.AllowFrom, strings.Join(entries, ","))
		if !slices.Contains(commands, command) {
			commands = append(commands, command)
		}
	}
	return &Change{
		Text: "Add the caller to those whom the Service lets in by its annotation. It may then do everything there. " +
			"(A TrafficTarget would end what annotations grant to this service account.)",
		Command: strings.Join(commands, "\n"),
	}
}

// unproxied reports whether the caller's proxy refuses an address, because what
// answers there has no proxy and the caller wants mutual TLS.
func (c *call) unproxied(a netip.Addr) bool {
	return slices.Contains(c.out.Refused, a)
}

// onlyUnproxied reports whether all that a Service leads to has no proxy, and the
// caller wants mutual TLS.
func (c *call) onlyUnproxied(m *mesh.Service) bool {
	mode, _ := c.modeOfService(m)
	return c.out.MutualTLSOnly && mode == mesh.Permissive && slices.ContainsFunc(m.Endpoints, mesh.Endpoint.Unproxied)
}

// wantsMutualTLS says why the caller calls nothing in plain text.
func (c *call) wantsMutualTLS() string {
	if c.pod != nil {
		if own, _ := annotation.PodMTLS(c.pod.Annotations); own != annotation.DemandNothing {
			return "by its annotation " + annotation.MTLS + "=" + c.pod.Annotations[annotation.MTLS]
		}
	}
	ns := c.caller.Identity.Namespace
	return fmt.Sprintf("as namespace %s says %s", ns, c.setBy(ns, annotation.MTLS))
}

// noteUnproxied says of Services with a ClusterIP that some pods get none of the call.
func (c *call) noteUnproxied(ways []way) {
	for _, w := range ways {
		for _, m := range c.services(func(m *mesh.Service) bool { return m.Name == w.bundle.Name }) {
			if c.out.MutualTLSOnly && !m.Headless && slices.ContainsFunc(m.Endpoints, mesh.Endpoint.Unproxied) {
				c.note("Pods of service %s without a proxy get none of it: the caller calls nothing in the mesh's namespaces in plain text, %s.", m.Name, c.wantsMutualTLS())
			}
		}
	}
}

// refuseUnproxied says that the caller's proxy does not call in plain text.
func (c *call) refuseUnproxied(what string) {
	c.deny(Client, MutualTLSWanted, "The caller's proxy denies it: %s has no proxy, and the caller calls nothing in the mesh's namespaces in plain text, %s.", what, c.wantsMutualTLS())
	c.answer.Change = c.callPlain()
}

// callPlain is what lets the caller call in plain text.
func (c *call) callPlain() *Change {
	give := "Give the server's pods proxies; outrigger why pod says why one has none."
	if c.pod != nil {
		if _, own := c.pod.Annotations[annotation.MTLS]; own {
			return &Change{Text: give + " Or take the annotation " + annotation.MTLS + " away from the caller's pods."}
		}
	}
	return &Change{
		Text:    give + " Or, to call them in plain text until then:",
		Command: "kubectl annotate namespace " + c.caller.Identity.Namespace + " " + annotation.MTLS + "-",
	}
}
