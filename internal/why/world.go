package why

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A World is what answers are computed from: the Snapshot, and the objects that it
// was built from for what a Snapshot does not hold. Nothing in it is changed.
type World struct {
	Snapshot *mesh.Snapshot
	// Injector holds the system namespace, the OSM mesh and the exclusions; its
	// images may be empty.
	Injector injector.Settings

	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Services   []*corev1.Service
	// Deployments are for callers that are named so; others may be left out.
	Deployments []*appsv1.Deployment
}

// caller finds who ref names: "namespace/pod", "deploy/NAME", "sa/NAME", a pod's
// name, or a SPIFFE ID as proxies tell it. What names no namespace is looked for
// in namespace.
func (w World) caller(ref, namespace string) (Caller, *corev1.Pod, error) {
	kind, name, two := strings.Cut(ref, "/")
	switch {
	case strings.HasPrefix(ref, "spiffe://"):
		id, _, err := w.Snapshot.Settings().ParseURI(ref)
		if err != nil {
			return Caller{}, nil, err
		}
		return w.account(id)
	case !two && ref != "":
		return w.pod(namespace, ref)
	case !two || kind == "" || name == "" || strings.Contains(name, "/"):
		return Caller{}, nil, fmt.Errorf("caller %q: use NAMESPACE/POD, deploy/NAME, sa/NAME or a SPIFFE ID", ref)
	}
	switch kind {
	case "deploy", "deployment", "deployments":
		return w.deployment(namespace, name)
	case "sa", "serviceaccount", "serviceaccounts":
		return w.account(mesh.Identity{Namespace: namespace, ServiceAccount: name})
	case "pod", "pods", "po":
		return w.pod(namespace, name)
	default:
		return w.pod(kind, name)
	}
}

func (w World) pod(namespace, name string) (Caller, *corev1.Pod, error) {
	i := slices.IndexFunc(w.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return Caller{}, nil, fmt.Errorf("there is no pod %s/%s", namespace, name)
	}
	return w.standingFor(identityOf(w.Pods[i]), []*corev1.Pod{w.Pods[i]})
}

func (w World) deployment(namespace, name string) (Caller, *corev1.Pod, error) {
	i := slices.IndexFunc(w.Deployments, func(d *appsv1.Deployment) bool { return d.Namespace == namespace && d.Name == name })
	if i < 0 {
		return Caller{}, nil, fmt.Errorf("there is no Deployment %s/%s", namespace, name)
	}
	d := w.Deployments[i]
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return Caller{}, nil, fmt.Errorf("read the selector of Deployment %s/%s: %w", namespace, name, err)
	}
	id := mesh.Identity{Namespace: namespace, ServiceAccount: cmp.Or(d.Spec.Template.Spec.ServiceAccountName, "default")}
	return w.standingFor(id, w.podsWhere(func(p *corev1.Pod) bool {
		return p.Namespace == namespace && identityOf(p) == id && selector.Matches(labelSet(p.Labels))
	}))
}

func (w World) account(id mesh.Identity) (Caller, *corev1.Pod, error) {
	if !slices.ContainsFunc(w.Namespaces, func(n *corev1.Namespace) bool { return n.Name == id.Namespace }) {
		return Caller{}, nil, fmt.Errorf("there is no namespace %s", id.Namespace)
	}
	return w.standingFor(id, w.podsWhere(func(p *corev1.Pod) bool { return identityOf(p) == id }))
}

type labelSet map[string]string

func (l labelSet) Has(label string) bool { _, ok := l[label]; return ok }

func (l labelSet) Get(label string) string { return l[label] }

func (l labelSet) Lookup(label string) (string, bool) { v, ok := l[label]; return v, ok }

func (w World) podsWhere(wanted func(*corev1.Pod) bool) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range w.Pods {
		if !ended(p) && wanted(p) {
			out = append(out, p)
		}
	}
	return out
}

// standingFor chooses the pod that answers are about: one with a proxy before one
// without, then the first by name. With no pod at all, the caller is taken as one
// that will have a proxy if its namespace is in the mesh.
func (w World) standingFor(id mesh.Identity, pods []*corev1.Pod) (Caller, *corev1.Pod, error) {
	if len(pods) == 0 {
		_, inMesh := w.meshNamespace(id.Namespace)
		return Caller{Identity: id, Proxy: inMesh}, nil, nil
	}
	best := slices.MinFunc(pods, func(p, q *corev1.Pod) int {
		return cmp.Or(cmp.Compare(b2i(w.hasProxy(q)), b2i(w.hasProxy(p))), strings.Compare(p.Name, q.Name))
	})
	return Caller{Identity: id, Pod: best.Namespace + "/" + best.Name, Proxy: w.hasProxy(best)}, best, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func identityOf(p *corev1.Pod) mesh.Identity {
	return mesh.Identity{Namespace: p.Namespace, ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default")}
}

func proxyID(p *corev1.Pod) mesh.ProxyID {
	return mesh.ProxyID{Namespace: p.Namespace, Pod: p.Name, UID: string(p.UID)}
}

// hasProxy reports whether the mesh counts a pod among its own.
func (w World) hasProxy(p *corev1.Pod) bool {
	_, ok := w.Snapshot.Workload(proxyID(p))
	return ok
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// podAt returns the pod that has an address, which pods on the host's network
// share with the node.
func (w World) podAt(a netip.Addr) *corev1.Pod {
	for _, p := range w.Pods {
		if ended(p) || p.Spec.HostNetwork {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if b, err := netip.ParseAddr(ip.IP); err == nil && b.Unmap() == a {
				return p
			}
		}
	}
	return nil
}

func (w World) namespace(name string) *corev1.Namespace {
	for _, n := range w.Namespaces {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// meshNamespace returns what holds in a namespace of the mesh.
func (w World) meshNamespace(name string) (mesh.Namespace, bool) {
	for _, n := range w.Snapshot.Dump().Namespaces {
		if n.Name == name {
			return n, true
		}
	}
	return mesh.Namespace{}, false
}

// services returns the modelled Service ports that pass wants, in order of name.
func (w World) services(wants func(*mesh.Service) bool) []*mesh.Service {
	all := w.Snapshot.Dump().Services
	var out []*mesh.Service
	for i := range all {
		if wants(&all[i]) {
			out = append(out, &all[i])
		}
	}
	return out
}

// setBy says where a namespace's setting comes from.
func (w World) setBy(namespace, key string) string {
	if n := w.namespace(namespace); n != nil {
		if value, ok := n.Annotations[key]; ok {
			_, mode := annotation.NamespaceMode(n.Annotations, mesh.Enforced)
			_, egress := annotation.NamespaceEgress(n.Annotations, false)
			_, text := annotation.NamespaceMTLS(n.Annotations)
			if err := map[string]error{annotation.TrafficPolicy: mode, annotation.Egress: egress, annotation.MTLS: text}[key]; err != nil {
				return fmt.Sprintf("because its annotation %s=%s is no word that is known, and so the strictest holds", key, value)
			}
			return fmt.Sprintf("by its annotation %s=%s", key, value)
		}
	}
	return "by the mesh's own setting"
}

// goesRound says why a call from a pod to an address never meets its proxy, or
// nothing.
func (w World) goesRound(p *corev1.Pod, to netip.Addr, port uint16) string {
	own, err := annotation.ParseRedirect(p.Annotations)
	if err != nil {
		own = annotation.Redirect{} // such a pod is not admitted
	}
	for _, r := range []struct {
		annotation.Redirect
		by string
	}{{own, "its pod"}, {w.Injector.Redirect, "the mesh"}} {
		if slices.Contains(r.ExcludeOutboundPorts, port) {
			return fmt.Sprintf("%s excludes calls to port %d from redirection", r.by, port)
		}
		for _, cidr := range r.ExcludeOutboundCIDRs {
			if cidr.Contains(to) {
				return fmt.Sprintf("%s excludes calls to %s from redirection", r.by, cidr)
			}
		}
	}
	only := slices.Concat(own.IncludeOutboundCIDRs, w.Injector.Redirect.IncludeOutboundCIDRs)
	if len(only) > 0 && to.IsValid() && !slices.ContainsFunc(only, func(c netip.Prefix) bool { return c.Contains(to) }) {
		return "only calls to certain ranges are redirected to its proxy, and this address is in none"
	}
	return ""
}

// unredirected reports whether a port of a pod is reached without its proxy.
func (w World) unredirected(p *corev1.Pod, port uint16) bool {
	own, err := annotation.ParseRedirect(p.Annotations)
	if err != nil {
		own = annotation.Redirect{}
	}
	return slices.Contains(own.ExcludeInboundPorts, port) || slices.Contains(w.Injector.Redirect.ExcludeInboundPorts, port)
}
