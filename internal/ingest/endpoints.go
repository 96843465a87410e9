package ingest

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// endpointSlices returns those of each Service.
func (b *builder) endpointSlices() map[mesh.ServiceName][]*discoveryv1.EndpointSlice {
	out := make(map[mesh.ServiceName][]*discoveryv1.EndpointSlice, len(b.objs.Services))
	for _, s := range b.objs.EndpointSlices {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		name := mesh.ServiceName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		out[name] = append(out[name], s)
	}
	return out
}

// endpoints returns the endpoints of a Service port, each address and port once.
// The slices of a Service may overlap while an endpoint moves between them; then
// the one that is not draining counts.
func (b *builder) endpoints(o *corev1.Service, p *corev1.ServicePort, in []*discoveryv1.EndpointSlice) []mesh.Endpoint {
	var out []mesh.Endpoint
	for _, s := range in {
		port := slicePort(s, p.Name)
		if port == 0 {
			continue
		}
		for i := range s.Endpoints {
			if e, ok := b.endpoint(o, &s.Endpoints[i]); ok {
				e.Port = port
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, func(e, f mesh.Endpoint) int {
		return cmp.Or(
			e.Address.Compare(f.Address), cmp.Compare(e.Port, f.Port),
			cmp.Compare(truth(e.Draining), truth(f.Draining)),
			f.Identity.Compare(e.Identity), // a known one before nobody
			cmp.Compare(e.Zone, f.Zone), cmp.Compare(e.Hostname, f.Hostname),
		)
	})
	return slices.CompactFunc(out, func(e, f mesh.Endpoint) bool { return e.Address == f.Address && e.Port == f.Port })
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// slicePort returns the port that a slice has for a Service port, or zero.
func slicePort(s *discoveryv1.EndpointSlice, name string) uint16 {
	for _, p := range s.Ports {
		if p.Port == nil || !validPort(*p.Port) || p.Protocol != nil && !isTCP(*p.Protocol) {
			continue
		}
		if p.Name == nil && name == "" || p.Name != nil && *p.Name == name {
			return uint16(*p.Port)
		}
	}
	return 0
}

// endpoint models one endpoint without its port, or reports false if it is to
// get no calls.
func (b *builder) endpoint(o *corev1.Service, e *discoveryv1.Endpoint) (mesh.Endpoint, bool) {
	draining, ok := conditions(e.Conditions)
	if !ok || len(e.Addresses) == 0 {
		return mesh.Endpoint{}, false
	}
	// Kubernetes itself uses the first only.
	address, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return mesh.Endpoint{}, false
	}
	address = address.Unmap()
	out, ok := b.who(o, e.TargetRef, address)
	if !ok {
		return mesh.Endpoint{}, false
	}
	out.Draining = draining
	if e.Zone != nil {
		out.Zone = *e.Zone
	}
	if e.Hostname != nil {
		out.Hostname = *e.Hostname
	}
	if b.member(o.Namespace) {
		hint(&out, o, e)
	}
	return out, true
}

// hint says for whom an endpoint is meant: in the EndpointSlice controller's words,
// or for everyone on its node where traffic is to stay there.
func hint(out *mesh.Endpoint, o *corev1.Service, e *discoveryv1.Endpoint) {
	if nodeLocal(o) {
		if e.NodeName != nil {
			out.ForNodes = []string{*e.NodeName}
		}
		return
	}
	if e.Hints == nil {
		return
	}
	for _, z := range e.Hints.ForZones {
		out.ForZones = append(out.ForZones, z.Name)
	}
	for _, n := range e.Hints.ForNodes {
		out.ForNodes = append(out.ForNodes, n.Name)
	}
}

// conditions reports whether an endpoint gets calls, and whether only those that
// nobody else can take. As in kube-proxy, ready and serving hold where they are not
// given (newEndpointSliceInfo in k8s.io/kubernetes/pkg/proxy/endpointslicecache.go);
// of Services that publish addresses which are not ready, the slices say that they
// are.
func conditions(c discoveryv1.EndpointConditions) (draining, ok bool) {
	given := func(condition *bool, otherwise bool) bool {
		if condition == nil {
			return otherwise
		}
		return *condition
	}
	if given(c.Ready, true) {
		return false, true
	}
	return true, given(c.Serving, true) && given(c.Terminating, false)
}

// who returns the endpoint at an address with who answers there, which is nobody
// unless a pod of the Service's own namespace proves it: with a proxy, with this
// uid and address, and selected by the Service. It reports false while endpoint
// and pod do not agree, as when one of the two is old news, and for an address
// that belongs to a pod with a sidecar which the endpoint does not name: to call it
// in plain text, as one outside the mesh, would be a mistake.
func (b *builder) who(o *corev1.Service, target *corev1.ObjectReference, address netip.Addr) (mesh.Endpoint, bool) {
	out := mesh.Endpoint{Address: address}
	if !b.member(o.Namespace) {
		return out, true
	}
	if target == nil || target.Kind != "Pod" {
		// Somebody wrote it by hand: it may be anything but one of ours.
		out.Outside = true
		return out, !b.sidecarAt[address]
	}
	p := b.byName[podName{o.Namespace, target.Name}]
	switch {
	case target.Namespace != o.Namespace || p == nil || p.UID != target.UID || !slices.Contains(p.ips, address):
		return out, false
	case !p.sidecar:
		out.OnNode = p.Spec.HostNetwork
		return out, true
	case !p.hasProxy || !matches(o.Spec.Selector, p.Labels):
		// It has ended, or has left the Service: its address may soon be another's.
		return out, false
	default:
		out.Identity = p.identity
		return out, true
	}
}
