package proof

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/api/whole"
)

// An actor is a pod of every random mesh. The cast is always the same, so that
// real Envoys can play many meshes.
type actor struct {
	namespace, name, account, address string
	sidecar                           bool
}

func cast() []actor {
	return []actor{
		{"a", "one-0", "one", "10.1.0.1", true},
		{"a", "two-0", "two", "10.1.0.2", true},
		{"a", "bare-0", "two", "10.1.0.3", false},
		{"b", "one-0", "one", "10.1.0.4", true},
		{"b", "def-0", "", "10.1.0.5", true},
		{"out", "app-0", "one", "10.1.0.6", false},
	}
}

// foreignAddress is the ClusterIP of a Service outside the mesh.
const foreignAddress = "10.96.9.1"

// podPorts are where the applications of the cast listen, all of them everywhere.
func podPorts() []int32 { return []int32{8080, 8081, 9000} }

// A dice makes the choices of one mesh.
type dice struct {
	*rand.Rand
	real bool // only what the cast's Envoys can play
}

func newDice(seed uint64, real bool) dice { return dice{rand.New(rand.NewPCG(seed, 0)), real} }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

func pick[T any](d dice, list ...T) T { return list[d.IntN(len(list))] }

// some returns up to most of a list, each once, in any order.
func some[T any](d dice, most int, list ...T) []T {
	out := slices.Clone(list)
	d.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), d.IntN(most+1))]
}

// mesh makes a cluster.
func (d dice) mesh() cluster {
	c := cluster{enforced: d.chance(70), egress: d.chance(50)}
	for _, name := range []string{"a", "b", "out"} {
		c.Namespaces = append(c.Namespaces, d.namespace(name))
	}
	for _, a := range cast() {
		c.Pods = append(c.Pods, d.pod(a))
	}
	for i, ns := range []string{"a", "b"} {
		for n := range 1 + d.IntN(3) {
			c.Services = append(c.Services, d.service(ns, n+1, fmt.Sprintf("10.96.%d.%d", i+1, n+1)))
		}
	}
	c.Services = append(c.Services, foreign())
	for _, s := range c.Services {
		c.EndpointSlices = append(c.EndpointSlices, d.slices(s, c.Pods)...)
	}
	for i := range d.IntN(6) {
		c.TrafficTargets = append(c.TrafficTargets, d.target(i))
	}
	for _, ns := range []string{"a", "b"} {
		for _, name := range some(d, 3, "g1", "g2", "g3") {
			c.HTTPRouteGroups = append(c.HTTPRouteGroups, d.group(ns, name))
		}
		for _, name := range some(d, 3, "t1", "t2", "t3") {
			c.TCPRoutes = append(c.TCPRoutes, d.route(ns, name))
		}
		for i := range d.IntN(3) {
			c.TrafficSplits = append(c.TrafficSplits, d.split(ns, i))
		}
	}
	return c
}

func (d dice) namespace(name string) *corev1.Namespace {
	n := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	n.Name = name
	if name == "out" {
		return n
	}
	n.Labels, n.Annotations = map[string]string{"outrigger.dev/inject": "enabled"}, map[string]string{}
	for _, k := range []struct {
		key    string
		values []string
	}{
		{"outrigger.dev/traffic-policy", []string{"permissive", "enforced", "Enforced", "maybe"}},
		{"outrigger.dev/egress", []string{"allow", "deny", ""}},
		{"outrigger.dev/mtls", []string{"permissive", "permissive", "strict", "off"}},
		{"outrigger.dev/allow-from", callers()},
	} {
		if d.chance(40) {
			n.Annotations[k.key] = pick(d, k.values...)
		}
	}
	return n
}

// callers are values of allow-from, some with words that allow nobody.
func callers() []string {
	return []string{"a", "b/*", "a/one", "*", "", "b/default, a/two", "A, b", "a/one/two", "out,b/one", "*/one"}
}

func (d dice) pod(a actor) *corev1.Pod {
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	p.Namespace, p.Name, p.UID = a.namespace, a.name, types.UID("uid-of-"+a.namespace+"-"+a.name)
	p.Labels = map[string]string{"app": pick(d, "x", "y"), "role": pick(d, "front", "back")}
	p.Spec.ServiceAccountName = a.account
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, a.address, []corev1.PodIP{{IP: a.address}}
	app := corev1.Container{Name: "app"}
	for _, name := range some(d, 2, "web", "raw") {
		app.Ports = append(app.Ports, corev1.ContainerPort{Name: name, ContainerPort: pick(d, podPorts()...)})
	}
	p.Spec.Containers = []corev1.Container{app}
	if a.sidecar {
		p.Spec.InitContainers = []corev1.Container{{Name: "outrigger-proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
	}
	if d.chance(15) {
		p.Annotations = map[string]string{"outrigger.dev/mtls": pick(d, "strict", "permissive")}
	}
	if !d.real && d.chance(4) {
		p.Status.Phase = pick(d, corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending)
	}
	return p
}

func (d dice) service(ns string, n int, address string) *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s.Namespace, s.Name = ns, fmt.Sprintf("s%d", n)
	s.Spec.ClusterIP = address
	if d.chance(20) {
		s.Spec.ClusterIP = corev1.ClusterIPNone
	}
	s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	s.Spec.Selector = pick(d, map[string]string{"app": "x"}, map[string]string{"app": "y"}, map[string]string{"role": "front"},
		map[string]string{"app": "x", "role": "back"}, map[string]string{"app": "z"}, nil)
	s.Annotations = map[string]string{}
	if d.chance(20) {
		s.Annotations["outrigger.dev/traffic-policy"] = pick(d, "permissive", "enforced", "perhaps")
	}
	if d.chance(20) {
		s.Annotations["outrigger.dev/mtls"] = pick(d, "permissive", "strict", "strict,80=permissive", "9000=permissive", "permissive,81=strict", "80=maybe")
	}
	if d.chance(25) {
		s.Annotations["outrigger.dev/allow-from"] = pick(d, callers()...)
	}
	for _, port := range some(d, 3, 80, 81, 9000, 3306) {
		p := corev1.ServicePort{Port: int32(port), Name: pick(d, "http-", "http-", "tcp-", "grpc-", "mysql-", "p-") + fmt.Sprint(port), TargetPort: intstr.FromInt32(pick(d, podPorts()...))}
		if d.chance(20) {
			p.TargetPort = intstr.FromString(pick(d, "web", "raw"))
		}
		if d.chance(10) {
			p.AppProtocol = new(pick(d, "http", "tcp", "kubernetes.io/h2c", "example.com/own"))
		}
		if d.chance(4) {
			p.Protocol = corev1.ProtocolUDP
		}
		if d.chance(3) {
			p.TargetPort = intstr.FromInt32(15001)
		}
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
	return s
}

// foreign is a Service outside the mesh.
func foreign() *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s.Namespace, s.Name = "out", "app"
	s.Spec.ClusterIP, s.Spec.ClusterIPs = foreignAddress, []string{foreignAddress}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}
	return s
}

// slices are a Service's, as Kubernetes makes them or a person writes them by
// hand.
func (d dice) slices(s *corev1.Service, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	add := func(name string, e discoveryv1.Endpoint, ports func(corev1.ServicePort) int32) {
		slice := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, AddressType: discoveryv1.AddressTypeIPv4}
		slice.Namespace, slice.Name, slice.Labels = s.Namespace, s.Name+"-"+name, map[string]string{discoveryv1.LabelServiceName: s.Name}
		slice.Endpoints = []discoveryv1.Endpoint{e}
		for _, p := range s.Spec.Ports {
			if n := ports(p); n != 0 {
				slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Port: new(n), Protocol: new(p.Protocol)})
			}
		}
		out = append(out, slice)
	}
	if s.Spec.Selector == nil {
		if d.chance(70) && s.Namespace != "out" {
			to := pick(d, pods...)
			add("by-hand", discoveryv1.Endpoint{Addresses: []string{to.Status.PodIP}}, func(corev1.ServicePort) int32 { return pick(d, podPorts()...) })
		}
		return out
	}
	for _, p := range pods {
		if p.Namespace != s.Namespace || !selects(s.Spec.Selector, p.Labels) {
			continue
		}
		e := discoveryv1.Endpoint{Addresses: []string{p.Status.PodIP}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
		switch {
		case d.chance(5):
			e.Conditions = discoveryv1.EndpointConditions{Ready: new(false)}
		case d.chance(8):
			e.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		case d.chance(3):
			e.TargetRef.UID = "of-one-before"
		}
		add(p.Name, e, func(sp corev1.ServicePort) int32 { return targetPort(sp, p) })
	}
	return out
}

func (d dice) target(n int) *accessv1alpha3.TrafficTarget {
	t := &accessv1alpha3.TrafficTarget{TypeMeta: metav1.TypeMeta{APIVersion: "access.smi-spec.io/v1alpha3", Kind: "TrafficTarget"}}
	t.Namespace, t.Name = pick(d, "a", "a", "a", "b", "b", "b", "out"), fmt.Sprintf("t%d", n)
	subject := func() accessv1alpha3.Subject {
		s := accessv1alpha3.Subject{Kind: "ServiceAccount", Name: pick(d, "one", "one", "two", "two", "default", "ghost"), Namespace: pick(d, "a", "b", "")}
		if d.chance(4) {
			s.Kind = pick(d, "Group", "Pod")
		}
		return s
	}
	t.Spec.Destination = subject()
	if d.chance(90) {
		t.Spec.Destination.Namespace = pick(d, t.Namespace, "")
	}
	for range 1 + d.IntN(3) {
		t.Spec.Sources = append(t.Spec.Sources, subject())
	}
	for range pick(d, 1, 1, 1, 2, 2, 0) {
		r := accessv1alpha3.Rule{Kind: "HTTPRouteGroup", Name: pick(d, "g1", "g2", "g3"), Matches: some(d, 2, "m1", "m2", "m3")}
		if d.chance(40) {
			r = accessv1alpha3.Rule{Kind: "TCPRoute", Name: pick(d, "t1", "t2", "t3")}
		}
		if d.chance(2) {
			r.Kind = "UDPRoute"
		}
		t.Spec.Rules = append(t.Spec.Rules, r)
	}
	return t
}

func (d dice) group(ns, name string) *specsv1alpha4.HTTPRouteGroup {
	g := &specsv1alpha4.HTTPRouteGroup{TypeMeta: metav1.TypeMeta{APIVersion: "specs.smi-spec.io/v1alpha4", Kind: "HTTPRouteGroup"}}
	g.Namespace, g.Name = ns, name
	for _, name := range []string{"m1", "m2", "m3", "m1"}[:1+d.IntN(4)] {
		m := specsv1alpha4.HTTPMatch{Name: name}
		m.PathRegex = pick(d, "", ".*", "/ok", "/ok.*", "/ok/[0-9]+", "/(ok|admin)", "/o", "/OK", "/adm|in", "(", "/ok?")
		m.Methods = pick(d, nil, nil, []string{"GET"}, []string{"GET", "POST"}, []string{"*"}, []string{"POST"}, []string{"DELETE", "*"})
		if d.chance(30) {
			m.Headers = append(m.Headers, pick(d, map[string]string{"x-key": "1|2"}, map[string]string{"X-Key": ".*"}, map[string]string{"host": "shop(:80)?"},
				map[string]string{"x-key": "1", "Host": ".*"}, map[string]string{":path": ".*"}, map[string]string{"x-key": ""}, map[string]string{"x-key": "1,2"}))
		}
		g.Spec.Matches = append(g.Spec.Matches, m)
	}
	return g
}

func (d dice) route(ns, name string) *specsv1alpha4.TCPRoute {
	r := &specsv1alpha4.TCPRoute{TypeMeta: metav1.TypeMeta{APIVersion: "specs.smi-spec.io/v1alpha4", Kind: "TCPRoute"}}
	r.Namespace, r.Name = ns, name
	r.Spec.Matches.Ports = numbers(pick(d, []int32{9000}, []int32{9000, 8080}, []int32{8081}, podPorts(), nil, []int32{0, 70000}, []int32{80}))
	return r
}

func (d dice) split(ns string, n int) *splitv1alpha4.TrafficSplit {
	s := &splitv1alpha4.TrafficSplit{TypeMeta: metav1.TypeMeta{APIVersion: "split.smi-spec.io/v1alpha4", Kind: "TrafficSplit"}}
	s.Namespace, s.Name = ns, fmt.Sprintf("split%d", n)
	s.CreationTimestamp = metav1.NewTime(time.Unix(int64(d.IntN(3)), 0).UTC())
	name := func() string {
		written := pick(d, "NAME", "NAME", "NAME.NS", "NAME.NS.svc", "NAME.NS.svc.cluster.local", "NAME.elsewhere", "NAME.NS.pod")
		return strings.NewReplacer("NAME", pick(d, "s1", "s2", "s3"), "NS", ns).Replace(written)
	}
	s.Spec.Service = name()
	for range d.IntN(4) {
		b := splitv1alpha4.Backend{Service: name(), Weight: whole.Of(int64(d.IntN(4)))}
		if d.chance(5) {
			b.Weight = whole.Written(pick(d, "-1", "0.5", "1e300", "99999999999999999999"))
		}
		s.Spec.Backends = append(s.Spec.Backends, b)
	}
	for range pick(d, 0, 0, 0, 1, 2) {
		s.Spec.Matches = append(s.Spec.Matches, splitv1alpha4.MatchReference{Kind: "HTTPRouteGroup", Name: pick(d, "g1", "g2", "g3")})
	}
	return s
}

// numbers are as an object has them.
func numbers(in []int32) []whole.Number {
	var out []whole.Number
	for _, n := range in {
		out = append(out, whole.Of(int64(n)))
	}
	return out
}
