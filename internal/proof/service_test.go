package proof

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
)

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
