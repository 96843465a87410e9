package proof

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
)

// This file is the documented rules once more, read from the objects. It shares no
// code with the mesh, and is written for the eye and not for speed.

// An account is who a pod is.
type account struct{ namespace, name string }

func accountOf(p *corev1.Pod) account {
	return account{p.Namespace, cmp.Or(p.Spec.ServiceAccountName, "default")}
}

func (a account) String() string { return a.namespace + "/" + a.name }

// A policy is what the objects of a cluster mean.
type policy struct {
	cluster
	grants []grant
	list   []front // of the Service ports
}

// A grant is a TrafficTarget that can be honoured.
type grant struct {
	server  account
	callers []account
	matches []specsv1alpha4.HTTPMatch
	ports   []int32
}

func newPolicy(c cluster) policy {
	p := policy{cluster: c}
	p.list = p.fronts()
	for _, t := range c.TrafficTargets {
		if g, ok := p.grant(t); ok {
			p.grants = append(p.grants, g)
		}
	}
	return p
}

// grant reads a TrafficTarget. It allows nothing if it is outside the mesh, its
// destination is not a service account of its own namespace, or one of its rules
// cannot be understood; nor if its HTTP rules, or its TCP rules, come to nothing,
// because each kind narrows the other.
func (p policy) grant(t *accessv1alpha3.TrafficTarget) (grant, bool) {
	to := t.Spec.Destination
	if !p.inMesh(t.Namespace) || to.Kind != "ServiceAccount" || to.Namespace != "" && to.Namespace != t.Namespace {
		return grant{}, false
	}
	g := grant{server: account{t.Namespace, to.Name}}
	for _, s := range t.Spec.Sources {
		if s.Kind == "ServiceAccount" {
			g.callers = append(g.callers, account{cmp.Or(s.Namespace, t.Namespace), s.Name})
		}
	}
	http, tcp := 0, 0
	for _, r := range t.Spec.Rules {
		switch r.Kind {
		case "HTTPRouteGroup":
			http++
			for _, name := range r.Matches {
				g.matches = append(g.matches, p.matches(t.Namespace, r.Name, name)...)
			}
		case "TCPRoute":
			tcp++
			g.ports = append(g.ports, p.tcpPorts(t.Namespace, r.Name)...)
		default:
			return grant{}, false
		}
	}
	return g, http+tcp > 0 && (http == 0 || len(g.matches) > 0) && (tcp == 0 || len(g.ports) > 0)
}

// matches returns the usable matches of a group; name "" is all.
func (p policy) matches(namespace, group, name string) []specsv1alpha4.HTTPMatch {
	var out []specsv1alpha4.HTTPMatch
	for _, g := range p.HTTPRouteGroups {
		if g.Namespace != namespace || g.Name != group {
			continue
		}
		for _, m := range g.Spec.Matches {
			if (name == "" || m.Name == name) && usable(m) {
				out = append(out, m)
			}
		}
	}
	return out
}

// usable reports whether a match can be honoured: with a faulty condition left out
// it would cover more than was written.
func usable(m specsv1alpha4.HTTPMatch) bool {
	if _, err := regexp.Compile(m.PathRegex); err != nil {
		return false
	}
	for _, headers := range m.Headers {
		for name, value := range headers {
			if _, err := regexp.Compile(value); err != nil || value == "" || strings.HasPrefix(name, ":") {
				return false
			}
		}
	}
	return true
}

func (p policy) tcpPorts(namespace, route string) []int32 {
	var out []int32
	for _, r := range p.TCPRoutes {
		if r.Namespace == namespace && r.Name == route {
			for _, text := range r.Spec.Matches.Ports {
				if n, err := strconv.ParseUint(text.String(), 10, 16); err == nil && n > 0 {
					out = append(out, int32(n))
				}
			}
		}
	}
	return out
}

// covers reports whether a match covers a request.
func covers(m specsv1alpha4.HTTPMatch, r request) bool {
	whole := func(expr, value string) bool { return regexp.MustCompile(`^(?:` + expr + `)$`).MatchString(value) }
	if m.PathRegex != "" && !whole(m.PathRegex, r.seen) {
		return false
	}
	if len(m.Methods) > 0 && !slices.Contains(m.Methods, r.method) && !slices.Contains(m.Methods, "*") {
		return false
	}
	for _, headers := range m.Headers {
		for name, expr := range headers {
			if value, sent := r.header(name); !sent || !whole(expr, value) {
				return false
			}
		}
	}
	return true
}

// namespace returns what a namespace's annotation says, in lower case, and whether
// it is there.
func (p policy) annotation(namespace, key string) (string, bool) {
	for _, n := range p.Namespaces {
		if n.Name == namespace {
			value, ok := n.Annotations["outrigger.dev/"+key]
			if key != "allow-from" { // names, in which case matters
				value = strings.ToLower(value)
			}
			return value, ok
		}
	}
	return "", false
}

func (p policy) inMesh(namespace string) bool {
	return slices.ContainsFunc(p.Namespaces, func(n *corev1.Namespace) bool {
		return n.Name == namespace && n.Labels["outrigger.dev/inject"] != ""
	})
}

// permissive reports whether all of the mesh may call a namespace. A word that is
// not known is the strict one.
func (p policy) permissive(namespace string) bool {
	word, said := p.annotation(namespace, "traffic-policy")
	return said && word == "permissive" || !said && !p.enforced
}

// mayLeave reports whether the pods of a namespace may call what is not in the mesh.
func (p policy) mayLeave(namespace string) bool {
	word, said := p.annotation(namespace, "egress")
	return said && word == "allow" || !said && p.egress
}

func hasSidecar(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "outrigger-proxy" })
}

func hasEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// meshed reports whether a pod has a proxy that runs.
func (p policy) meshed(pod *corev1.Pod) bool {
	return p.inMesh(pod.Namespace) && hasSidecar(pod) && !hasEnded(pod)
}

func (p policy) podAt(address string) *corev1.Pod {
	for _, pod := range p.Pods {
		if pod.Status.PodIP == address {
			return pod
		}
	}
	return nil
}

// protocol returns "http", "tcp" or "" for a Service port: what its appProtocol
// says, else the beginning of its name, else what is usual for its number.
func protocol(sp corev1.ServicePort) string {
	words := map[string]string{"http": "http", "grpc": "http", "kubernetes.io/h2c": "http", "tcp": "tcp", "mysql": "tcp"}
	if sp.AppProtocol != nil && words[*sp.AppProtocol] != "" {
		return words[*sp.AppProtocol]
	}
	prefix, _, _ := strings.Cut(sp.Name, "-")
	if words[prefix] != "" {
		return words[prefix]
	}
	if sp.Port == 3306 || sp.TargetPort.IntValue() == 3306 {
		return "tcp"
	}
	return ""
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// targetPort is the port of a pod that a Service port leads to, or zero.
func targetPort(sp corev1.ServicePort, pod *corev1.Pod) int32 {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal
	}
	for _, c := range pod.Spec.Containers {
		for _, own := range c.Ports {
			if own.Name == sp.TargetPort.StrVal {
				return own.ContainerPort
			}
		}
	}
	return 0
}

// A front is one TCP port of a Service.
type front struct {
	*corev1.Service
	port corev1.ServicePort
}

func (f front) String() string { return fmt.Sprintf("%s/%s:%d", f.Namespace, f.Name, f.port.Port) }

func (f front) headless() bool { return f.Spec.ClusterIP == corev1.ClusterIPNone }

// fronts returns the Service ports, in order of the Services' names and, in each, as
// they are written. One that leads to a port of the proxy itself is none.
func (p policy) fronts() []front {
	var out []front
	for _, s := range p.Services {
		for _, sp := range s.Spec.Ports {
			f := front{s, sp}
			reserved := slices.ContainsFunc(p.behind(f), func(pod *corev1.Pod) bool {
				n := targetPort(sp, pod)
				return n >= 15000 && n <= 15020
			}) || p.unserved(f) && sp.TargetPort.IntVal >= 15000 && sp.TargetPort.IntVal <= 15020
			if (sp.Protocol == "" || sp.Protocol == corev1.ProtocolTCP) && !reserved {
				out = append(out, f)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b front) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// behind returns the pods with a proxy that a Service of the mesh selects.
func (p policy) behind(f front) []*corev1.Pod {
	var out []*corev1.Pod
	for _, pod := range p.Pods {
		if pod.Namespace == f.Namespace && p.meshed(pod) && selects(f.Spec.Selector, pod.Labels) {
			out = append(out, pod)
		}
	}
	return out
}

// speaks returns the protocol of a pod's port, and whether any Service leads
// there: to the mesh, pods serve nothing else. Of Services that contradict each other
// the first that declares something holds.
func (p policy) speaks(pod *corev1.Pod, port int32) (string, bool) {
	served := false
	for _, f := range p.list {
		if targetPort(f.port, pod) == port && slices.Contains(p.behind(f), pod) {
			if protocol(f.port) != "" {
				return protocol(f.port), true
			}
			served = true
		}
	}
	return "", served
}

// opens reports whether some grant lets a caller do anything at a port of a server
// that speaks a protocol.
func (p policy) opens(caller, server account, port int32, proto string) bool {
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		return g.server == server && slices.Contains(g.callers, caller) && (g.allowsHTTP(port, proto) || g.allowsTCP(port, proto))
	})
}

// allowsHTTP: HTTP rules hold on every port that may speak HTTP, or on those that
// the grant's TCPRoutes name.
func (g grant) allowsHTTP(port int32, proto string) bool {
	return proto != "tcp" && len(g.matches) > 0 && (len(g.ports) == 0 || slices.Contains(g.ports, port))
}

// allowsTCP: a TCPRoute opens its ports. On one that declares nothing it does so
// only without HTTP rules beside it, which a caller would else get round.
func (g grant) allowsTCP(port int32, proto string) bool {
	return proto != "http" && slices.Contains(g.ports, port) && (proto == "tcp" || len(g.matches) == 0)
}

// A knock is how a call comes to a server's proxy.
type knock struct {
	as    account // zero is nobody: plain text
	asTCP bool    // no HTTP was announced in the handshake
	request
}

// serves reports whether a server's proxy lets a call in to a port of its pod. This is
// the boundary: whatever a client's proxy is made to do, this holds.
func (p policy) serves(pod *corev1.Pod, port int32, k knock) bool {
	proto, served := p.speaks(pod, port)
	holds := p.on(pod, port)
	readsHTTP := proto == "http" || proto == "" && !k.asTCP && k.as != account{}
	switch {
	case !served || k.as == account{} && !holds.plainText:
		return false
	case readsHTTP && (k.tcp || k.seen == ""):
		// A plain connection to a declared port may be the application's own TLS, but
		// it is not here.
		return false
	case holds.permissive || holds.lets(k.as):
		return true
	}
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		if g.server != accountOf(pod) || !slices.Contains(g.callers, k.as) {
			return false
		}
		if !readsHTTP {
			return g.allowsTCP(port, proto)
		}
		return g.allowsHTTP(port, proto) && slices.ContainsFunc(g.matches, func(m specsv1alpha4.HTTPMatch) bool { return covers(m, k.request) })
	})
}

// An endpoint is an address behind a Service port.
type endpoint struct {
	address string
	port    int32
	pod     *corev1.Pod // nil for what is no pod of the Service's namespace
	late    bool        // it is going away, and gets calls only while nobody else is there
}

// endpoints returns those of a Service port of the mesh that may get calls: ready
// ones, and of pods only those that exist as the endpoint says.
func (p policy) endpoints(f front) []endpoint {
	byPlace := map[string]endpoint{}
	for _, s := range p.EndpointSlices {
		if s.Namespace != f.Namespace || s.Labels[discoveryv1.LabelServiceName] != f.Name {
			continue
		}
		for _, sp := range s.Ports {
			if *sp.Name != f.port.Name {
				continue
			}
			for _, e := range s.Endpoints {
				if out, ok := p.endpoint(f, e, *sp.Port); ok {
					byPlace[fmt.Sprint(out.address, out.port)] = out
				}
			}
		}
	}
	var out []endpoint
	for _, place := range slices.Sorted(maps.Keys(byPlace)) {
		out = append(out, byPlace[place])
	}
	return out
}

func (p policy) endpoint(f front, e discoveryv1.Endpoint, port int32) (endpoint, bool) {
	out := endpoint{address: e.Addresses[0], port: port}
	if c := e.Conditions; c.Ready != nil && !*c.Ready {
		if c.Serving == nil || !*c.Serving || c.Terminating == nil || !*c.Terminating {
			return out, false
		}
		out.late = true
	}
	if e.TargetRef == nil {
		// Written by hand. It may be anything but a pod with a proxy.
		there := p.podAt(out.address)
		return out, there == nil || !hasSidecar(there) || !p.inMesh(there.Namespace)
	}
	out.pod = p.find(e.TargetRef.Namespace, e.TargetRef.Name)
	if out.pod == nil || out.pod.UID != e.TargetRef.UID {
		return out, false
	}
	return out, !hasSidecar(out.pod) || p.meshed(out.pod) && selects(f.Spec.Selector, out.pod.Labels)
}

func live(in []endpoint) []endpoint {
	out := slices.DeleteFunc(slices.Clone(in), func(e endpoint) bool { return e.late })
	if len(out) == 0 {
		return in
	}
	return out
}

// unserved reports whether a Service selects pods and there is none, as after it was
// scaled to zero. Its callers keep their way to it; see mayOnceServed.
func (p policy) unserved(f front) bool {
	return len(f.Spec.Selector) > 0 && !f.headless() && !slices.ContainsFunc(p.Pods, func(pod *corev1.Pod) bool {
		return pod.Namespace == f.Namespace && !hasEnded(pod) && selects(f.Spec.Selector, pod.Labels)
	})
}

// mayOnceServed reports whether a caller has a grant in a Service's namespace that could
// be for its first pod, whatever account and, where the port is named, port that has.
func (p policy) mayOnceServed(caller account, f front) bool {
	if p.rule([]front{f}, nil).lets(caller) {
		return true
	}
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		ports := append(slices.Clone(g.ports), 0)
		if f.port.TargetPort.Type == intstr.Int {
			ports = []int32{f.port.TargetPort.IntVal}
		}
		return g.server.namespace == f.Namespace && slices.Contains(g.callers, caller) && slices.ContainsFunc(ports, func(port int32) bool {
			return g.allowsHTTP(port, protocol(f.port)) || g.allowsTCP(port, protocol(f.port))
		})
	})
}

// split returns the split of a Service: the oldest that names it.
func (p policy) split(f front) *splitv1alpha4.TrafficSplit {
	var oldest *splitv1alpha4.TrafficSplit
	for _, s := range p.TrafficSplits {
		if s.Namespace != f.Namespace || !p.names(s.Spec.Service, f) {
			continue
		}
		if oldest == nil || cmp.Or(s.CreationTimestamp.Compare(oldest.CreationTimestamp.Time), strings.Compare(s.Name, oldest.Name)) < 0 {
			oldest = s
		}
	}
	if oldest != nil && len(oldest.Spec.Matches) > 0 && len(p.narrows(oldest)) == 0 {
		return nil // its matches come to nothing; without them it would split everything
	}
	return oldest
}

// names reports whether a name, as a person writes it, is that of a Service of the
// same namespace.
func (p policy) names(written string, f front) bool {
	return slices.Contains([]string{f.Name, f.Name + "." + f.Namespace, f.Name + "." + f.Namespace + ".svc", f.Name + "." + f.Namespace + ".svc." + clusterDomain}, written)
}

// narrows returns the requests that a split is for; none is all.
func (p policy) narrows(s *splitv1alpha4.TrafficSplit) []specsv1alpha4.HTTPMatch {
	var out []specsv1alpha4.HTTPMatch
	for _, m := range s.Spec.Matches {
		if m.Kind == "HTTPRouteGroup" {
			out = append(out, p.matches(s.Namespace, m.Name, "")...)
		}
	}
	return out
}

// A share is a backend that a caller may use.
type share struct {
	weight    int
	endpoints []endpoint
	front
}

// backends returns the backends of a split for one port of its apex. What is
// missing, has another protocol or may not be called is left out, and what nobody
// serves now; awaited says that there is such a one.
func (p policy) backends(who client, s *splitv1alpha4.TrafficSplit, apex front) (out []share, awaited bool) {
	for _, f := range p.list {
		if f.Namespace != apex.Namespace || f.port.Port != apex.port.Port {
			continue
		}
		weight, named := 0, false
		for _, b := range s.Spec.Backends {
			if n, err := strconv.ParseUint(b.Weight.String(), 10, 32); p.names(b.Service, f) && err == nil {
				weight, named = weight+int(n), true
			}
		}
		if f.Name != apex.Name && (f.headless() || (protocol(f.port) == "tcp") != (protocol(apex.port) == "tcp")) {
			continue
		}
		may, endpoints := p.reach(who, f)
		switch {
		case !named || !may:
		case p.unserved(f) && !first(p.mode(f)):
			awaited = true
		default:
			out = append(out, share{weight, endpoints, f})
		}
	}
	return out, awaited
}

func first[T, U any](v T, _ U) T { return v }
