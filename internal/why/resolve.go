package why

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A target is what a host name or address stands for.
type target struct {
	// addresses are those that DNS answers with; none for a name outside the
	// cluster, which nobody here knows.
	addresses []netip.Addr
	service   *corev1.Service // that the name or address belongs to, if any
	alias     string          // the ExternalName that was followed, if any
}

// maxAliases bounds how many ExternalNames lead to each other.
const maxAliases = 8

// resolve answers as the cluster's DNS answers a pod of a namespace.
func (w World) resolve(host, namespace string, port uint16) (target, error) {
	alias := ""
	for range maxAliases {
		if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return w.byAddress(a.Unmap(), alias), nil
		}
		t, known, err := w.lookUp(strings.ToLower(host), namespace, port)
		if err != nil {
			return target{}, err
		}
		if known && t.service != nil && t.service.Spec.Type == corev1.ServiceTypeExternalName {
			host, alias = strings.TrimSuffix(t.service.Spec.ExternalName, ".")+".", t.service.Spec.ExternalName
			continue
		}
		t.alias = alias
		return t, nil
	}
	return target{}, fmt.Errorf("host %s: more than %d ExternalNames lead to each other", host, maxAliases)
}

func (w World) byAddress(a netip.Addr, alias string) target {
	t := target{addresses: []netip.Addr{a}, alias: alias}
	for _, s := range w.Services {
		if slices.Contains(clusterIPs(s), a) {
			t.service = s
		}
	}
	return t
}

func clusterIPs(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, ip := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// lookUp goes through the search domains that the kubelet gives to pods. A name
// that can only be the cluster's and is not known is an error.
func (w World) lookUp(host, namespace string, port uint16) (target, bool, error) {
	domain := w.Snapshot.Settings().ClusterDomain
	search := []string{"." + namespace + ".svc." + domain, ".svc." + domain, "." + domain, ""}
	name, absolute := strings.CutSuffix(host, ".")
	if absolute {
		search = []string{""}
	}
	for _, suffix := range search {
		inner, ok := strings.CutSuffix(name+suffix, "."+domain)
		if !ok {
			continue
		}
		if t, ok := w.inCluster(inner, port); ok {
			return t, true, nil
		}
	}
	if err := w.mistaken(strings.TrimSuffix(name, "."+domain), namespace, name); err != nil {
		return target{}, false, err
	}
	return target{}, false, nil
}

// inCluster answers for a name below the cluster's domain: "svc.ns.svc",
// "host.svc.ns.svc" or "10-1-2-3.ns.pod".
func (w World) inCluster(name string, port uint16) (target, bool) {
	labels := strings.Split(name, ".")
	switch n := len(labels); {
	case n == 3 && labels[2] == "pod":
		if a, ok := dashed(labels[0]); ok {
			return w.byAddress(a, ""), true
		}
	case (n == 3 || n == 4) && labels[n-1] == "svc":
		s := w.service(labels[n-3], labels[n-2])
		if s == nil {
			break
		}
		if n == 3 {
			return target{service: s, addresses: w.addressesOf(s, port)}, true
		}
		if found := w.hostOf(s, labels[0], port); len(found) > 0 {
			return target{service: s, addresses: found}, true
		}
	}
	return target{}, false
}

// dashed reads an address as DNS writes it in names.
func dashed(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.ReplaceAll(s, "-", "."))
	if err != nil {
		a, err = netip.ParseAddr(strings.ReplaceAll(s, "-", ":"))
	}
	return a.Unmap(), err == nil
}

func (w World) service(name, namespace string) *corev1.Service {
	for _, s := range w.Services {
		if s.Name == name && s.Namespace == namespace {
			return s
		}
	}
	return nil
}

// addressesOf returns what a Service's own name stands for.
func (w World) addressesOf(s *corev1.Service, port uint16) []netip.Addr {
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		return clusterIPs(s)
	}
	var out []netip.Addr
	for _, e := range w.endpointsOf(s, port) {
		out = append(out, e.Address)
	}
	return out
}

// hostOf returns the addresses of one endpoint of a headless Service.
func (w World) hostOf(s *corev1.Service, host string, port uint16) []netip.Addr {
	a, byAddress := dashed(host)
	var out []netip.Addr
	for _, e := range w.endpointsOf(s, port) {
		if e.Hostname == host || byAddress && e.Address == a {
			out = append(out, e.Address)
		}
	}
	return out
}

// endpointsOf returns the endpoints of a headless Service: those that the model
// has for a port or, outside the mesh, the selected pods.
func (w World) endpointsOf(s *corev1.Service, port uint16) []mesh.Endpoint {
	name := mesh.ServiceName{Namespace: s.Namespace, Name: s.Name}
	var out []mesh.Endpoint
	add := func(e mesh.Endpoint) {
		if !slices.ContainsFunc(out, func(f mesh.Endpoint) bool { return f.Address == e.Address }) {
			out = append(out, e)
		}
	}
	modelled := w.services(func(m *mesh.Service) bool { return m.Name.ServiceName == name })
	for _, m := range modelled {
		for _, e := range m.Endpoints {
			// A headless Service is called at the port that the pod listens on.
			if e.Port == port || m.Name.Port == port {
				add(e)
			}
		}
	}
	if len(modelled) > 0 || len(s.Spec.Selector) == 0 {
		return out
	}
	for _, p := range w.Pods {
		if p.Namespace != s.Namespace || ended(p) || !selects(s.Spec.Selector, p.Labels) {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				add(mesh.Endpoint{Address: a.Unmap(), Hostname: p.Spec.Hostname})
			}
		}
	}
	return out
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// mistaken returns an error for a name that cannot be one of the world outside.
func (w World) mistaken(inner, namespace, host string) error {
	labels := strings.Split(strings.TrimSuffix(inner, ".svc"), ".")
	last := labels[len(labels)-1]
	switch {
	case len(labels) == 1:
		return fmt.Errorf("host %s: there is no Service %s in namespace %s%s", host, labels[0], namespace, w.has(namespace))
	case w.namespace(last) != nil:
		return fmt.Errorf("host %s: there is no such Service or pod in namespace %s%s", host, last, w.has(last))
	case strings.HasSuffix(inner, ".svc") || inner != host:
		return fmt.Errorf("host %s: there is no namespace %s", host, last)
	}
	return nil
}

// has names a few of a namespace's Services.
func (w World) has(namespace string) string {
	const most = 5
	var names []string
	for _, s := range w.Services {
		if s.Namespace == namespace {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return ", which has none"
	}
	slices.Sort(names)
	if n := len(names) - most; n > 0 {
		names = append(names[:most], fmt.Sprintf("%d more", n))
	}
	return "; it has " + strings.Join(names, ", ")
}
