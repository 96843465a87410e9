package proof

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
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
