package why

import (
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
	if len(shared) > 0 {
		c.note("Namespace %s says how its Services are called: %s.", ns.Name, strings.Join(shared, "; "))
	}
}
