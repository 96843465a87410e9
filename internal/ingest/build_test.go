package ingest

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/api/whole"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

// What policy means is shown by the stories of package scenario.

func TestSelectedUsesEveryLabel(t *testing.T) {
	objs := generate(4, 2)
	b := &builder{objs: objs}
	b.namespaces()
	b.pods()
	pod := objs.Pods[0]
	cases := map[string]struct {
		reason   string
		selector map[string]string
		want     int
	}{
		"OneLabel":   {reason: "replicas of one app", selector: map[string]string{"app": pod.Labels["app"]}, want: 2},
		"Shared":     {reason: "every pod of the namespace", selector: map[string]string{"tier": "backend"}, want: 4},
		"Both":       {reason: "all labels must match", selector: map[string]string{"tier": "backend", "app": pod.Labels["app"]}, want: 2},
		"Mismatch":   {reason: "one that matches is not enough", selector: map[string]string{"tier": "frontend", "app": pod.Labels["app"]}},
		"Empty":      {reason: "a Service without a selector selects nothing", selector: map[string]string{}},
		"EmptyValue": {reason: "a label with an empty value is not an absent one", selector: map[string]string{"gone": ""}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := len(b.selected(pod.Namespace, c.selector)); got != c.want {
				t.Errorf("%s: %d pods, want %d", c.reason, got, c.want)
			}
		})
	}
}

// BenchmarkBuild has namespaces of the usual size, and one that holds everything.
func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{100, 1_000, 5_000} {
		for name, perNamespace := range map[string]int{"namespaces-of-20": 20, "one-namespace": n} {
			b.Run(fmt.Sprintf("services=%d/%s", n, name), func(b *testing.B) {
				objs := generate(n, perNamespace)
				b.ReportAllocs()
				for b.Loop() {
					if _, problems := Build(objs, testOptions()); len(problems) > 0 {
						b.Fatal(problems[0])
					}
				}
			})
		}
	}
}

func testOptions() Options {
	return Options{TrustDomain: "cluster.local", ClusterDomain: "cluster.local", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
}

// generate returns a cluster of n Services with two pods each, so many Services
// to a namespace, every second one with a TrafficTarget and every tenth with a
// TrafficSplit.
func generate(n, perNamespace int) Objects {
	var o Objects
	for i := range n {
		ns := fmt.Sprintf("team-%d", i/perNamespace)
		if i%perNamespace == 0 {
			o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"outrigger.dev/inject": "enabled"}}})
		}
		app := fmt.Sprintf("app-%d", i)
		meta := metav1.ObjectMeta{Namespace: ns, Name: app, Labels: map[string]string{discoveryv1.LabelServiceName: app}}
		address := fmt.Sprintf("10.96.%d.%d", i>>8, i&255)
		o.Services = append(o.Services, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			ClusterIP: address, ClusterIPs: []string{address},
			Selector: map[string]string{"app": app, "tier": "backend"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
		}})
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
		}
		for r := range 2 {
			pod := generatePod(ns, app, i, r)
			o.Pods = append(o.Pods, pod)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{pod.Status.PodIPs[0].IP},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod.Name, UID: pod.UID},
			})
		}
		o.EndpointSlices = append(o.EndpointSlices, slice)
		if i%2 == 0 {
			o.HTTPRouteGroups = append(o.HTTPRouteGroups, &specsv1alpha4.HTTPRouteGroup{ObjectMeta: meta, Spec: specsv1alpha4.HTTPRouteGroupSpec{
				Matches: []specsv1alpha4.HTTPMatch{{Name: "read", PathRegex: "/v1/.*", Methods: []string{"GET"}}, {Name: "all"}},
			}})
			o.TrafficTargets = append(o.TrafficTargets, &accessv1alpha3.TrafficTarget{ObjectMeta: meta, Spec: accessv1alpha3.TrafficTargetSpec{
				Destination: accessv1alpha3.Subject{Kind: "ServiceAccount", Name: app},
				Sources:     []accessv1alpha3.Subject{{Kind: "ServiceAccount", Name: fmt.Sprintf("app-%d", i+1)}},
				Rules:       []accessv1alpha3.Rule{{Kind: "HTTPRouteGroup", Name: app, Matches: []string{"read", "all"}}},
			}})
		}
		if i%10 == 0 {
			o.TrafficSplits = append(o.TrafficSplits, &splitv1alpha4.TrafficSplit{ObjectMeta: meta, Spec: splitv1alpha4.TrafficSplitSpec{
				Service: app, Backends: []splitv1alpha4.Backend{{Service: app, Weight: whole.Of(100)}},
			}})
		}
	}
	return o
}

func generatePod(ns, app string, i, replica int) *corev1.Pod {
	name := fmt.Sprintf("%s-%d", app, replica)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": app, "tier": "backend"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: app,
			InitContainers:     []corev1.Container{{Name: sidecar.Name, RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
			Containers:         []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}},
		},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", replica+1, i>>8, i&255)}}},
	}
}
