package why

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A serverPort is a port that policy would have to open.
type serverPort struct {
	identity mesh.Identity
	port     uint16
	protocol mesh.Protocol
	service  mesh.ServiceName
}

// servers returns what a call to a Service port comes to: the pods of the Service
// and of the backends that its split gives a share to.
func (c *call) servers(m *mesh.Service) []serverPort {
	names := []mesh.PortName{m.Name}
	for _, s := range c.Snapshot.Dump().Splits {
		if s.Apex != m.Name.ServiceName || len(s.Matches) > 0 {
			continue
		}
		names = nil
		for _, k := range s.Backends {
			if k.Weight > 0 {
				names = append(names, mesh.PortName{ServiceName: mesh.ServiceName{Namespace: s.Apex.Namespace, Name: k.Service}, Port: m.Name.Port})
			}
		}
	}
	var out []serverPort
	for _, s := range c.services(func(s *mesh.Service) bool { return slices.Contains(names, s.Name) && mesh.Splittable(m, s) }) {
		if len(s.Targets) > 0 {
			for _, t := range s.Targets {
				if t.Policy != nil && t.Policy.Mode == mesh.Permissive {
					continue // nothing is missing there
				}
				out = append(out, serverPort{identity: t.Identity, port: t.Port, protocol: s.Protocol, service: s.Name.ServiceName})
			}
			continue
		}
		for _, id := range s.Identities {
			for _, port := range s.TargetPorts {
				out = append(out, serverPort{identity: id, port: port, protocol: s.Protocol, service: s.Name.ServiceName})
			}
		}
	}
	return out
}

// serversOf is servers, or for a headless Service dialled, of the Service port of a name.
func (c *call) serversOf(name string) []serverPort {
	var out []serverPort
	for _, m := range c.services(func(m *mesh.Service) bool { return m.Name.String() == name }) {
		if m.Headless {
			out = append(out, c.dialled(m)...)
		} else {
			out = append(out, c.servers(m)...)
		}
	}
	return out
}

// suggest finds what would make the backends that deny the call let it in.
func (c *call) suggest(r Reason) {
	var servers []serverPort
	for _, b := range c.answer.Backends {
		if b.Verdict != Denied {
			continue
		}
		if b.Server == "" { // the caller's proxy knows no server of this Service
			servers = append(servers, c.serversOf(b.Service)...)
			continue
		}
		ns, sa, _ := strings.Cut(b.Server, "/")
		s := serverPort{identity: mesh.Identity{Namespace: ns, ServiceAccount: sa}, port: b.Port}
		for _, m := range c.services(func(m *mesh.Service) bool {
			return slices.Contains(m.Identities, s.identity) && slices.Contains(m.TargetPorts, s.port)
		}) {
			if s.service.Name == "" || m.Name.String() == b.Service {
				s.protocol, s.service = m.Protocol, m.Name.ServiceName
			}
		}
		servers = append(servers, s)
	}
	switch {
	case r == NoRule || r == NoGrant:
		c.advise(servers)
	case r == MutualTLSWanted:
		c.answer.Change = c.callPlain()
	case r == PlainRefused && !c.caller.Proxy:
		c.answer.Change = c.joining(servers)
	case r == PlainRefused && c.round:
		c.answer.Change = &Change{Text: "Take that exclusion away, and make the pod anew: only through its proxy the caller has a name."}
	case r == PlainRefused:
		c.answer.Change = &Change{Text: "Call the Service and not the pod: only then the caller's proxy knows whom to expect, and uses mutual TLS."}
		if c.answer.Destination.Service != "" {
			c.advise(servers)
		}
	case r == PortClosed:
		c.answer.Change = &Change{Text: "Give the pods a Service with that target port: a proxy serves only what a Service leads to."}
	}
}

// joining is what a caller without a proxy can do: get one or, where the server is
// permissive anyway, be let in without.
func (c *call) joining(servers []serverPort) *Change {
	if held, _ := c.held(servers[0]); held.IsHTTP() && (c.scheme == "tcp" || c.isHTTP() && c.escaped()) {
		return &Change{Text: fmt.Sprintf("No policy can allow this: port %d is declared as %s, and its proxy refuses what it cannot read.", servers[0].port, held)}
	}
	give := fmt.Sprintf("label its namespace with %s=enabled and restart its pods", annotation.Inject)
	if c.pod != nil {
		give = fmt.Sprintf("outrigger why pod %s says how", c.caller.Pod)
	}
	ns := servers[0].identity.Namespace
	in := c.inbound(mesh.Endpoint{Identity: servers[0].identity, Port: servers[0].port})
	if in != nil && in.Mode == mesh.Permissive && in.PlainTextBy != "" {
		return &Change{Text: fmt.Sprintf("Give the caller a proxy: %s. Until then, to let plain text in, write permissive instead of strict where that is said: %s.", give, c.plainBy(servers[0].identity, in))}
	}
	if in != nil && in.Mode == mesh.Permissive {
		return &Change{
			Text:    fmt.Sprintf("Give the caller a proxy: %s. Until then, to let plain text into namespace %s:", give, ns),
			Command: "kubectl annotate namespace " + ns + " --overwrite " + annotation.MTLS + "=permissive",
		}
	}
	return &Change{Text: fmt.Sprintf("Give the caller a proxy: %s. Then a policy can let it call.", give)}
}

// maxMisses is how many near misses are worth reading.
const maxMisses = 5

// advise looks through the grants of the servers for those that come near, and
// says what would be enough.
func (c *call) advise(servers []serverPort) {
	if text := c.declaredTwice(servers); text != "" {
		c.answer.Change = &Change{Text: text}
		return
	}
	if reads := slices.ContainsFunc(servers, func(s serverPort) bool { return s.protocol != mesh.TCP }); reads && c.isHTTP() && c.escaped() {
		c.answer.Change = &Change{Text: "No policy can allow this: " + errEscaped.Error() + "."}
		return
	}
	if i := slices.IndexFunc(servers, func(s serverPort) bool { return s.protocol.IsHTTP() }); i >= 0 && !c.isHTTP() {
		c.answer.Change = &Change{Text: fmt.Sprintf("No policy can allow this: port %d is declared as %s, and only HTTP gets in there. "+
			"If the application speaks something else, name the Service port tcp-…, or set its appProtocol.", servers[i].port, servers[i].protocol)}
		return
	}
	var near []NearMiss
	joinable := map[mesh.Identity][]string{} // grants that lack nothing but the caller
	for _, g := range c.Snapshot.Dump().Grants {
		ports := slices.DeleteFunc(slices.Clone(servers), func(s serverPort) bool { return s.identity != g.Server })
		if len(ports) == 0 {
			continue
		}
		found, fits := c.compare(g, ports)
		near = append(near, found...)
		if fits && !slices.Contains(g.Callers, c.caller.Identity) {
			joinable[g.Server] = append(joinable[g.Server], g.Source)
		}
	}
	annotated, inEffect := c.adviseAllowFrom(servers)
	near = append(near, annotated...)
	slices.SortStableFunc(near, func(a, b NearMiss) int { return cmp.Compare(a.far, b.far) })
	c.answer.NearMisses = near[:min(len(near), maxMisses)]
	c.answer.Change = c.smallest(servers, joinable)
	if inEffect && c.answer.Change != nil {
		c.answer.Change = c.addToAllowFrom(servers)
	}
}

// declaredTwice says what to do where the Service that is called says something else
// of a port of its pods than the Service whose word holds, or nothing.
func (c *call) declaredTwice(servers []serverPort) string {
	for _, s := range servers {
		if held, ok := c.held(s); ok && held != s.protocol && (!held.IsHTTP() || !s.protocol.IsHTTP()) {
			return fmt.Sprintf("Two Services lead to port %d of the pods of %s, and declare it differently (%s holds, not %s). Give both the same protocol: name their ports alike, or set their appProtocol.",
				s.port, s.identity, protocolName(held), protocolName(s.protocol))
		}
	}
	return ""
}

// held returns what a server's port speaks, by the word of the Service that holds.
func (c *call) held(s serverPort) (mesh.Protocol, bool) {
	if c.protocols == nil {
		c.protocols = map[identityPort]mesh.Protocol{}
		for _, w := range c.Snapshot.Dump().Workloads {
			for _, p := range w.Ports {
				key := identityPort{w.Identity, p.Port}
				if _, known := c.protocols[key]; !known {
					c.protocols[key] = p.Protocol
				}
			}
		}
	}
	protocol, ok := c.protocols[identityPort{s.identity, s.port}]
	return protocol, ok
}

// An identityPort is a port of the pods of an identity.
type identityPort struct {
	identity mesh.Identity
	port     uint16
}

// compare says in what a grant differs from what the call needs, and whether it
// would do for another caller.
func (c *call) compare(g mesh.Grant, ports []serverPort) (near []NearMiss, fits bool) {
	known := slices.Contains(g.Callers, c.caller.Identity)
	add := func(far int, format string, args ...any) {
		near = append(near, NearMiss{Object: g.Source, Differs: fmt.Sprintf(format, args...), far: far})
	}
	others := some(g.Callers)
	http := c.isHTTP() && slices.ContainsFunc(ports, func(s serverPort) bool { return s.protocol != mesh.TCP })
	if !http {
		open := slices.ContainsFunc(ports, func(s serverPort) bool { return opensTCP(g, s.port, s.protocol) })
		switch {
		case open && !known:
			add(1, "it lets %s connect, not %s", others, c.caller.Identity)
		case !open && known && g.Narrow:
			add(1, "it names %s, and has HTTP rules only, which open no TCP port", c.caller.Identity)
		case !open && known && len(g.HTTP) > 0 && slices.ContainsFunc(ports, func(s serverPort) bool { return slices.Contains(g.Ports, s.port) }):
			add(1, "it names %s, and has HTTP rules, so on a port that declares no protocol it opens no TCP", c.caller.Identity)
		case !open && known && len(g.Ports) == 0:
			add(1, "it names %s, and opens no TCP port", c.caller.Identity)
		case !open && known:
			add(1, "it names %s, and opens port %s, not %s", c.caller.Identity, numbers(g.Ports), portNumbers(ports))
		}
		return near, open
	}
	if len(g.Ports) > 0 && !slices.ContainsFunc(ports, func(s serverPort) bool { return slices.Contains(g.Ports, s.port) }) {
		if known {
			add(farPath, "it names %s, and is for port %s, not %s", c.caller.Identity, numbers(g.Ports), portNumbers(ports))
		}
		return near, false
	}
	if len(g.HTTP) == 0 && known {
		add(farPath, "it names %s, and allows no HTTP request", c.caller.Identity)
	}
	for _, m := range g.HTTP {
		differs := misses(m, c.seen)
		switch {
		case len(differs) == 0 && known:
			return nil, true // it allows the call; another server of the Service does not
		case len(differs) == 0:
			fits = true
			add(1, "it lets %s %s, not %s", others, describe(m), c.caller.Identity)
		case known:
			far, texts := 0, []string(nil)
			for _, d := range differs {
				far, texts = far+d.far, append(texts, d.text)
			}
			add(far, "of its rule %s: %s", describe(m), strings.Join(texts, ", and "))
		}
	}
	return near, fits
}

// smallest returns a change that allows the call and as little else as can be: a
// source more in TrafficTargets that allow it to others, or objects of its own.
func (c *call) smallest(servers []serverPort, joinable map[mesh.Identity][]string) *Change {
	if len(servers) == 0 {
		return nil
	}
	var sources []string
	for _, s := range servers {
		if len(joinable[s.identity]) == 0 {
			return c.objects(servers)
		}
		if t := joinable[s.identity][0]; !slices.Contains(sources, t) {
			sources = append(sources, t)
		}
	}
	id := c.caller.Identity
	return &Change{
		Text:    fmt.Sprintf("Add the caller to the sources of %s. It may then do all that the others there may:", list(sources)),
		Sources: sources,
		YAML:    fmt.Sprintf("- kind: ServiceAccount\n  name: %s\n  namespace: %s\n", id.ServiceAccount, id.Namespace),
	}
}

// objects writes SMI objects that allow this call and nothing else.
func (c *call) objects(servers []serverPort) *Change {
	http := c.isHTTP() && servers[0].protocol != mesh.TCP
	byServer := map[mesh.Identity][]uint16{}
	var order []mesh.Identity
	for _, s := range servers {
		if _, ok := byServer[s.identity]; !ok {
			order = append(order, s.identity)
		}
		byServer[s.identity] = append(byServer[s.identity], s.port)
	}
	var docs []string
	for _, server := range order {
		name := objectName(c.caller.Identity, server)
		route := fmt.Sprintf("apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n  matches:\n    ports: [%s]\n",
			name, server.Namespace, numbers(byServer[server]))
		rule := fmt.Sprintf("  - kind: TCPRoute\n    name: %s\n", name)
		if http {
			route = fmt.Sprintf("apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n  matches:\n  - name: request\n    pathRegex: '%s'\n    methods: [%s]\n",
				name, server.Namespace, strings.ReplaceAll(regexp.QuoteMeta(c.seen.path), "'", "''"), c.seen.method)
			rule = fmt.Sprintf("  - kind: HTTPRouteGroup\n    name: %s\n    matches: [request]\n", name)
		}
		docs = append(docs, route, fmt.Sprintf("apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n"+
			"  destination:\n    kind: ServiceAccount\n    name: %s\n    namespace: %s\n  sources:\n  - kind: ServiceAccount\n    name: %s\n    namespace: %s\n  rules:\n%s",
			name, server.Namespace, server.ServiceAccount, server.Namespace, c.caller.Identity.ServiceAccount, c.caller.Identity.Namespace, rule))
	}
	what := "this request"
	if !http {
		what = "this port"
	}
	text := "Apply this, which allows " + what + " and nothing else:"
	if near := c.answer.NearMisses; len(near) > 0 && near[0].headersOnly() && http {
		text = "Send the headers that the nearest rule wants, or apply this, which allows the request without them:"
	}
	return &Change{Text: text, YAML: strings.Join(docs, "---\n")}
}

// objectName is that of objects which let a caller call a server.
func objectName(caller, server mesh.Identity) string {
	name := fmt.Sprintf("%s-%s-calls-%s", caller.Namespace, caller.ServiceAccount, server.ServiceAccount)
	return strings.Trim(name[:min(len(name), 253)], "-.")
}

// some names the first few identities.
func some(ids []mesh.Identity) string {
	const most = 3
	var names []string
	for _, id := range ids[:min(len(ids), most)] {
		names = append(names, id.String())
	}
	if n := len(ids) - most; n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return list(names)
}

// list joins with commas and, before the last, "and".
func list(names []string) string {
	switch n := len(names); n {
	case 0:
		return "none"
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
}

func numbers(ports []uint16) string {
	var out []string
	for _, p := range slices.Compact(slices.Sorted(slices.Values(ports))) {
		out = append(out, fmt.Sprint(p))
	}
	return strings.Join(out, ", ")
}

func portNumbers(ports []serverPort) string {
	var out []uint16
	for _, p := range ports {
		out = append(out, p.port)
	}
	return numbers(out)
}
