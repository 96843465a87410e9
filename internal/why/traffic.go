package why

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// settings notes how the caller's proxy makes a call through a bundle, and which
// object says so.
func (c *call) settings(b *mesh.Bundle) {
	i := slices.IndexFunc(c.Services, func(o *corev1.Service) bool { return o.Namespace == b.Name.Namespace && o.Name == b.Name.Name })
	ns := c.namespace(b.Name.Namespace)
	if c.answer.Verdict == Denied || b.Passthrough || i < 0 || ns == nil {
		return
	}
	var own, shared []string
	for _, k := range annotation.TrafficKeys(c.isHTTP() && b.Protocol != mesh.TCP, b.Headless) {
		setting := strings.TrimPrefix(k.Name, annotation.Prefix) + "="
		if value, ok := c.Services[i].Annotations[k.Name]; ok && k.Valid(value) {
			own = append(own, setting+value)
		} else if value, ok := ns.Annotations[k.Name]; ok && k.Valid(value) {
			shared = append(shared, setting+value)
		}
	}
	if len(own) > 0 {
		c.note("Service %s says how it is called: %s.", b.Name.ServiceName, strings.Join(own, "; "))
	}
	c.poolSettings(b)
	if len(shared) > 0 {
		c.note("Namespace %s says how its Services are called: %s.", ns.Name, strings.Join(shared, "; "))
	}
}

// poolSettings notes how the endpoints of the backends of an HTTP split are used,
// where that is not as those of the Service that was called: a share is limited and
// balanced as its own Service says.
func (c *call) poolSettings(b *mesh.Bundle) {
	if c.answer.Split == "" || b.Protocol == mesh.TCP || !c.isHTTP() {
		return
	}
	apex := c.poolOf(b.Name.ServiceName)
	var noted []mesh.ServiceName
	for _, w := range c.answer.Backends {
		to := c.backendService(w, b)
		if to == b.Name.ServiceName || slices.Contains(noted, to) {
			continue
		}
		noted = append(noted, to)
		if own := c.poolOf(to); !slices.Equal(own, apex) {
			c.note("The share of Service %s is limited and balanced by %s.", to, cmp.Or(strings.Join(own, "; "), "the defaults"))
		}
	}
}

// backendService is the Service that a backend is of.
func (c *call) backendService(w Backend, b *mesh.Bundle) mesh.ServiceName {
	name, _, _ := strings.Cut(w.Service, ":")
	ns, name, found := strings.Cut(name, "/")
	if !found {
		return b.Name.ServiceName
	}
	return mesh.ServiceName{Namespace: ns, Name: name}
}

// poolOf returns what holds for the endpoints of a Service, by its own word or by its
// namespace's.
func (c *call) poolOf(name mesh.ServiceName) []string {
	o, ns := c.service(name.Name, name.Namespace), c.namespace(name.Namespace)
	if o == nil || ns == nil {
		return nil
	}
	var out []string
	for _, k := range annotation.PoolKeys() {
		for _, said := range []map[string]string{o.Annotations, ns.Annotations} {
			if value, ok := said[k.Name]; ok && k.Valid(value) {
				out = append(out, strings.TrimPrefix(k.Name, annotation.Prefix)+"="+value)
				break
			}
		}
	}
	return out
}
