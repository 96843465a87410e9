package ingest

import (
	"cmp"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

type podName struct{ namespace, name string }

type podLabel struct{ namespace, key, value string }

// A pod is a pod of a namespace of the mesh.
type pod struct {
	*corev1.Pod
	sidecar  bool // it was made with one, which may have ended
	ended    bool // nothing of it runs any more
	hasProxy bool
	identity mesh.Identity
	ips      []netip.Addr
	ports    map[uint16]claim // what Services lead to, if it has a proxy
	log      mesh.AccessLog
	logged   map[uint16]mesh.AccessLog
	sampled  map[uint16]*mesh.Sampling
	leads    map[uint16][]lead
	policies map[uint16]*mesh.PortPolicy // of the same ports; nil where the namespace's holds
	mtls     annotation.Demand
}

// pods indexes the pods of the mesh's namespaces.
func (b *builder) pods() {
	b.byName = make(map[podName]*pod, len(b.objs.Pods))
	b.sidecarAt = make(map[netip.Addr]bool, len(b.objs.Pods))
	b.proxyAt = make(map[netip.Addr]*pod, len(b.objs.Pods))
	b.byLabel = make(map[podLabel][]*pod, len(b.objs.Pods))
	for _, o := range b.objs.Pods {
		if !b.member(o.Namespace) {
			continue
		}
		p := &pod{
			Pod: o, sidecar: sidecar.In(o), ended: ended(o), ports: map[uint16]claim{}, leads: map[uint16][]lead{}, logged: map[uint16]mesh.AccessLog{}, sampled: map[uint16]*mesh.Sampling{},
			identity: mesh.Identity{Namespace: o.Namespace, ServiceAccount: cmp.Or(o.Spec.ServiceAccountName, "default")},
		}
		if p.hasProxy = p.sidecar && !p.ended; p.hasProxy {
			b.podWord(p)
			b.ownLog(p)
		}
		for _, ip := range o.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				p.ips = append(p.ips, a.Unmap())
				b.sidecarAt[a.Unmap()] = b.sidecarAt[a.Unmap()] || p.sidecar
				if p.hasProxy {
					b.proxyAt[a.Unmap()] = p
				}
			}
		}
		b.byName[podName{o.Namespace, o.Name}] = p
		if p.ended {
			continue
		}
		for k, v := range o.Labels {
			l := podLabel{o.Namespace, k, v}
			b.byLabel[l] = append(b.byLabel[l], p)
		}
	}
}

// podWord reads what a pod says about mutual TLS.
func (b *builder) podWord(p *pod) {
	var err error
	if p.mtls, err = annotation.PodMTLS(p.Annotations); err != nil {
		b.found.add(ref("v1", "Pod", p), BadAnnotation, "%v; only mutual TLS is let in, and called", err)
	}
}

// ended reports whether all containers of a pod have ended for good.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// nodes notes the zones of the nodes.
func (b *builder) nodes() {
	b.zones = make(map[string]string, len(b.objs.Nodes))
	for _, o := range b.objs.Nodes {
		b.zones[o.Name] = o.Labels[corev1.LabelTopologyZone]
	}
}

// workloads lists the pods with a proxy, once the Services have said what they
// serve.
func (b *builder) workloads() {
	for _, p := range b.byName {
		if !p.hasProxy {
			continue
		}
		w := mesh.Workload{
			ID:       mesh.ProxyID{Namespace: p.Namespace, Pod: p.Name, UID: string(p.UID)},
			Identity: p.identity,
			Zone:     b.zones[p.Spec.NodeName],
			Node:     p.Spec.NodeName,
			// What a pod says itself counts before its namespace's word.
			AccessLog:     p.log,
			MutualTLSOnly: cmp.Or(p.mtls, b.namespaceWords[p.Namespace].mtls) == annotation.Strict,
		}
		for port, c := range p.ports {
			w.Ports = append(w.Ports, mesh.WorkloadPort{
				Port: port, Protocol: c.protocol, Policy: p.policies[port], AccessLog: b.log(p, port), Sampling: p.sampled[port],
			})
		}
		b.parts.Workloads = append(b.parts.Workloads, w)
	}
}

// selected returns the pods of a namespace that a selector matches and that have not
// ended. An empty selector matches none. It looks through those of the rarest label only,
// so that thousands of Services in one namespace stay cheap.
func (b *builder) selected(namespace string, selector map[string]string) []*pod {
	var fewest []*pod
	first := true
	for k, v := range selector {
		if l := b.byLabel[podLabel{namespace, k, v}]; first || len(l) < len(fewest) {
			fewest, first = l, false
		}
	}
	var out []*pod
	for _, p := range fewest {
		if matches(selector, p.Labels) {
			out = append(out, p)
		}
	}
	return out
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
