package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// podRange is where stand-ins have their addresses: a range for documentation,
// which no cluster uses.
var podRange = netip.MustParsePrefix("2001:db8::/64") //nolint:gochecknoglobals // a constant, if Go had them of this type

// Complete returns the objects as a cluster would have them: every namespace that
// is named exists, labelled for the mesh if the input does not have it; every
// workload whose pods are not in the input has one pod, with a sidecar if it would
// get one; every Service has an address out of cidrs, and endpoints. What the input
// says itself is kept, and o is not changed.
func Complete(o Objects, settings injector.Settings, cidrs []netip.Prefix) (ingest.Objects, error) {
	c := completion{Objects: o.Objects, settings: settings, next: podRange.Addr()}
	c.namespaces(o.Templates)
	c.pods(o.Templates)
	if err := c.services(cidrs); err != nil {
		return ingest.Objects{}, err
	}
	c.endpoints()
	return c.Objects, nil
}

type completion struct {
	ingest.Objects
	settings injector.Settings
	next     netip.Addr // the last address that was given to a pod
}

func (c *completion) namespaces(templates []Template) {
	c.Namespaces = slices.Clone(c.Namespaces)
	named := map[string]bool{}
	for _, t := range templates {
		named[t.Namespace] = true
	}
	for _, p := range c.Pods {
		named[p.Namespace] = true
	}
	for _, s := range c.Services {
		named[s.Namespace] = true
	}
	for _, t := range c.TrafficTargets {
		named[t.Namespace] = true
	}
	for _, n := range c.Namespaces {
		delete(named, n.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{annotation.Inject: "enabled"}}}
		c.Namespaces = append(c.Namespaces, n)
	}
}

// pods adds those of workloads. A pod that has a uid comes from a cluster, and is
// as it is.
func (c *completion) pods(templates []Template) {
	given := c.Pods
	c.Pods = nil
	for _, p := range given {
		if p.UID == "" {
			p = c.admitted(p.DeepCopy())
		}
		c.Pods = append(c.Pods, p)
	}
	for _, t := range templates {
		made := slices.ContainsFunc(given, func(p *corev1.Pod) bool {
			return p.Namespace == t.Namespace && strings.HasPrefix(p.Name, t.Name+"-") && selects(t.Pod.Labels, p.Labels)
		})
		if made {
			continue
		}
		p := &corev1.Pod{ObjectMeta: *t.Pod.ObjectMeta.DeepCopy(), Spec: *t.Pod.Spec.DeepCopy()}
		p.Namespace, p.Name = t.Namespace, t.Name+"-0"
		if t.Kind == "StatefulSet" {
			p.Spec.Hostname = p.Name
		}
		c.Pods = append(c.Pods, c.admitted(p))
	}
}

// admitted is what becomes of a pod: it may get a sidecar, and it gets an address.
func (c *completion) admitted(p *corev1.Pod) *corev1.Pod {
	i := slices.IndexFunc(c.Namespaces, func(n *corev1.Namespace) bool { return n.Name == p.Namespace })
	ns := injector.Namespace{Name: p.Namespace, Labels: c.Namespaces[i].Labels, Annotations: c.Namespaces[i].Annotations}
	verdict := injector.Decide(injector.Request{Namespace: ns, Match: injector.MatchNamespace(ns, c.settings), Pod: p}, c.settings)
	has := slices.ContainsFunc(p.Spec.InitContainers, func(k corev1.Container) bool { return k.Name == injector.ProxyContainer })
	if verdict.Outcome == injector.Injected && !has {
		p.Spec.InitContainers = append([]corev1.Container{{Name: injector.ProxyContainer, RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}, p.Spec.InitContainers...)
	}
	p.UID = types.UID("made-of-" + p.Name)
	if len(p.Status.PodIPs) == 0 {
		c.next = c.next.Next()
		p.Status.PodIP, p.Status.PodIPs = c.next.String(), []corev1.PodIP{{IP: c.next.String()}}
	}
	return p
}

// services gives each one without it a ClusterIP.
func (c *completion) services(cidrs []netip.Prefix) error {
	taken := map[string]bool{}
	for _, s := range c.Services {
		taken[s.Spec.ClusterIP] = true
		for _, ip := range s.Spec.ClusterIPs {
			taken[ip] = true
		}
	}
	given := c.Services
	c.Services = nil
	for _, s := range given {
		if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 && s.Spec.Type != corev1.ServiceTypeExternalName {
			ip, err := free(cidrs, taken)
			if err != nil {
				return fmt.Errorf("give service %s/%s an address: %w", s.Namespace, s.Name, err)
			}
			s = s.DeepCopy()
			s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
		} else if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
			s = s.DeepCopy()
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		}
		c.Services = append(c.Services, s)
	}
	return nil
}

func free(cidrs []netip.Prefix, taken map[string]bool) (string, error) {
	for _, cidr := range cidrs {
		// The first is the network's own.
		for a := cidr.Masked().Addr().Next(); cidr.Contains(a); a = a.Next() {
			if !taken[a.String()] {
				taken[a.String()] = true
				return a.String(), nil
			}
		}
	}
	return "", fmt.Errorf("the ranges of ClusterIPs %v have none left", cidrs)
}

// endpoints makes a slice for each Service that selects pods and has none.
func (c *completion) endpoints() {
	c.EndpointSlices = slices.Clone(c.EndpointSlices)
	for _, s := range c.Services {
		has := slices.ContainsFunc(c.EndpointSlices, func(e *discoveryv1.EndpointSlice) bool {
			return e.Namespace == s.Namespace && e.Labels[discoveryv1.LabelServiceName] == s.Name
		})
		if has || len(s.Spec.Selector) == 0 {
			continue
		}
		// A named target port may have another number in each pod: a slice for each.
		for _, p := range c.Pods {
			if p.Namespace == s.Namespace && selects(s.Spec.Selector, p.Labels) && len(p.Status.PodIPs) > 0 {
				c.EndpointSlices = append(c.EndpointSlices, slice(s, p))
			}
		}
	}
}

func slice(s *corev1.Service, p *corev1.Pod) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-" + p.Name, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{p.Status.PodIPs[0].IP},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		}},
	}
	if strings.Contains(p.Status.PodIPs[0].IP, ":") {
		out.AddressType = discoveryv1.AddressTypeIPv6
	}
	if p.Spec.Hostname != "" && s.Spec.ClusterIP == corev1.ClusterIPNone {
		out.Endpoints[0].Hostname = &p.Spec.Hostname
	}
	for _, port := range s.Spec.Ports {
		if n := target(port, p); n != 0 {
			out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: new(port.Name), Port: new(n), Protocol: new(cmp.Or(port.Protocol, corev1.ProtocolTCP))})
		}
	}
	return out
}

func target(port corev1.ServicePort, p *corev1.Pod) int32 {
	if port.TargetPort.Type == intstr.Int {
		return cmp.Or(port.TargetPort.IntVal, port.Port)
	}
	for _, k := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, own := range k.Ports {
			if own.Name == port.TargetPort.StrVal {
				return own.ContainerPort
			}
		}
	}
	return 0
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
