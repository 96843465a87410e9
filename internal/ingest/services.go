package ingest

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

// A claim is what a Service says that a pod's port speaks.
type claim struct {
	protocol mesh.Protocol
	by       mesh.PortName
}

// services models each TCP port of each Service, and tells the pods what they
// serve. It goes by name, so that the first Service by name wins a conflict.
func (b *builder) services() {
	b.ports = make(map[mesh.ServiceName][]*mesh.Service, len(b.objs.Services))
	byName := make(map[mesh.ServiceName]*corev1.Service, len(b.objs.Services))
	for _, o := range b.objs.Services {
		byName[serviceName(o)] = o
	}
	b.serviceWords = make(map[mesh.ServiceName]*serviceWord, len(b.objs.Services))
	b.targetPods = make(map[mesh.PortName][]targetPod, len(b.objs.Services))
	endpointSlices := b.endpointSlices()
	for _, name := range slices.SortedFunc(maps.Keys(byName), mesh.ServiceName.Compare) {
		o := byName[name]
		switch {
		case o.Spec.Type == corev1.ServiceTypeExternalName:
			// It is a DNS alias: calls go to what it leads to.
		case b.member(o.Namespace) && !isAPIServer(o):
			b.meshService(o, endpointSlices[name])
		case !headless(o):
			b.foreignService(o, endpointSlices[name])
		}
	}
}

// serviceRanges adds the ClusterIPs of the mesh that no range has, as while a new
// range is not known yet: what is outside of them counts as egress, and would leave
// in plain text.
func (b *builder) serviceRanges() {
	ranges := b.parts.Settings.ServiceCIDRs
	for _, s := range b.parts.Services {
		for _, a := range s.Addresses {
			if s.InMesh && !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
				ranges = append(slices.Clip(ranges), netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	b.parts.Settings.ServiceCIDRs = ranges
}

func serviceName(o *corev1.Service) mesh.ServiceName {
	return mesh.ServiceName{Namespace: o.Namespace, Name: o.Name}
}

func headless(o *corev1.Service) bool { return o.Spec.ClusterIP == corev1.ClusterIPNone }

// nodeLocal reports whether calls to o stay on the caller's node.
func nodeLocal(o *corev1.Service) bool {
	return o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
}

// isAPIServer reports whether o is the Service of the Kubernetes API server,
// which every pod may reach.
func isAPIServer(o *corev1.Service) bool { return o.Namespace == "default" && o.Name == "kubernetes" }

// isDNS reports whether o is the cluster's DNS. Its UDP never meets the proxy;
// long answers come over TCP, and must come too.
func isDNS(o *corev1.Service) bool {
	return o.Namespace == "kube-system" && o.Labels["k8s-app"] == "kube-dns"
}

// foreignService models the ports of a Service outside the mesh.
func (b *builder) foreignService(o *corev1.Service, in []*discoveryv1.EndpointSlice) {
	for _, p := range tcpPorts(o) {
		svc := newService(o, p)
		svc.AlwaysReachable = isAPIServer(o) || isDNS(o) && p.Port == 53
		if isAPIServer(o) {
			// Clients know it by these addresses too.
			svc.Endpoints = b.endpoints(o, p, in)
		}
		b.parts.Services = append(b.parts.Services, *svc)
	}
}

// meshService models the ports of a Service of the mesh, and claims the ports of
// the pods that it selects.
func (b *builder) meshService(o *corev1.Service, in []*discoveryv1.EndpointSlice) {
	b.checked(ref("v1", "Service", o), annotation.CheckService(o.Annotations))
	traffic := annotation.ParseTraffic(o.Annotations, b.traffic[o.Namespace])
	pods := b.selected(o.Namespace, o.Spec.Selector)
	unserved := len(o.Spec.Selector) > 0 && len(pods) == 0
	pods = slices.DeleteFunc(pods, func(p *pod) bool { return !p.hasProxy })
	log, logged, _ := annotation.ParseAccessLog(annotation.Service, o.Annotations)
	word := b.serviceWord(o)
	b.serviceWords[serviceName(o)] = word
	for _, p := range tcpPorts(o) {
		svc := newService(o, p)
		svc.InMesh, svc.Unserved, svc.Traffic = true, unserved, traffic
		svc.Traffic.Sampling = b.sampling(svc.Name, traffic.Sampling)
		targets := make([]uint16, len(pods))
		for i, pod := range pods {
			svc.Identities = append(svc.Identities, pod.identity)
			if targets[i] = targetPort(p, pod.Pod); targets[i] != 0 {
				svc.TargetPorts = append(svc.TargetPorts, targets[i])
			}
		}
		if port := targetPort(p, &corev1.Pod{}); unserved && port != 0 {
			svc.TargetPorts = []uint16{port}
		}
		svc.Identities = distinct(svc.Identities, mesh.Identity.Compare)
		svc.TargetPorts = distinct(svc.TargetPorts, cmp.Compare)
		svc.Endpoints = b.endpoints(o, p, in)
		if i := slices.IndexFunc(svc.TargetPorts, reserved); i >= 0 {
			b.found.add(ref("v1", "Service", o), ReservedPort,
				"port %d leads to port %d, and ports 15000 to 15020 belong to the proxy", p.Port, svc.TargetPorts[i])
			continue
		}
		for i, pod := range pods {
			if targets[i] != 0 {
				b.claim(o, pod, targets[i], claim{protocol: svc.Protocol, by: svc.Name})
				if logged {
					pod.logs(targets[i], log)
				}
				pod.samples(targets[i], svc.Traffic.Sampling)
				pod.leads[targets[i]] = append(pod.leads[targets[i]], lead{word, svc.Name.Port})
				b.targetPods[svc.Name] = append(b.targetPods[svc.Name], targetPod{pod, targets[i]})
			}
		}
		b.parts.Services = append(b.parts.Services, *svc)
		b.ports[svc.Name.ServiceName] = append(b.ports[svc.Name.ServiceName], svc)
	}
}

func distinct[T comparable](in []T, compare func(a, b T) int) []T {
	slices.SortFunc(in, compare)
	return slices.Compact(in)
}

// claim says what a pod's port speaks. The first Service by name that declares
// a protocol wins.
func (b *builder) claim(o *corev1.Service, p *pod, port uint16, c claim) {
	old, taken := p.ports[port]
	switch {
	case !taken || old.protocol == mesh.Auto:
		p.ports[port] = c
	case c.protocol != mesh.Auto && c.protocol.IsHTTP() != old.protocol.IsHTTP():
		b.found.add(ref("v1", "Service", o), ProtocolConflict,
			"port %d says that port %d of its pods speaks %s; service %s, which holds, says %s", c.by.Port, port, c.protocol, old.by, old.protocol)
	}
}

// reserved reports whether a port of a pod is the proxy's own.
func reserved(port uint16) bool { return port >= 15000 && port <= 15020 }

func newService(o *corev1.Service, p *corev1.ServicePort) *mesh.Service {
	svc := &mesh.Service{
		Name:     mesh.PortName{ServiceName: serviceName(o), Port: uint16(p.Port)}, //nolint:gosec // tcpPorts checked it
		Protocol: protocol(p),
		Headless: headless(o),
	}
	svc.NodeLocal = nodeLocal(o) && !svc.Headless
	for _, ip := range o.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			svc.Addresses = append(svc.Addresses, a.Unmap())
		}
	}
	return svc
}

// tcpPorts returns the TCP ports of a Service, each number once. UDP and SCTP do
// not pass through the proxy.
func tcpPorts(o *corev1.Service) []*corev1.ServicePort {
	var out []*corev1.ServicePort
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		if isTCP(p.Protocol) && validPort(p.Port) && !slices.ContainsFunc(out, func(q *corev1.ServicePort) bool { return q.Port == p.Port }) {
			out = append(out, p)
		}
	}
	return out
}

func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

func validPort(p int32) bool { return p > 0 && p <= 65535 }

// targetPort returns the port of a pod that a Service port leads to, or zero if
// no container of it has that name. Sidecars of the user's own count.
func targetPort(p *corev1.ServicePort, pod *corev1.Pod) uint16 {
	if p.TargetPort.Type == intstr.Int {
		port := cmp.Or(p.TargetPort.IntVal, p.Port)
		if !validPort(port) {
			return 0
		}
		return uint16(port)
	}
	for c := range containers(pod) {
		for _, cp := range c.Ports {
			if cp.Name == p.TargetPort.StrVal && isTCP(cp.Protocol) && validPort(cp.ContainerPort) {
				return uint16(cp.ContainerPort) //nolint:gosec // checked
			}
		}
	}
	return 0
}

// containers yields those that run as long as the pod does.
func containers(pod *corev1.Pod) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for i := range pod.Spec.Containers {
			if !yield(&pod.Spec.Containers[i]) {
				return
			}
		}
		for i := range pod.Spec.InitContainers {
			if c := &pod.Spec.InitContainers[i]; sidecar.Native(c) && !yield(c) {
				return
			}
		}
	}
}
