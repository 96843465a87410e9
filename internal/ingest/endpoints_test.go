package ingest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

// A small cluster: namespaces open (permissive) and shut (enforced, egress
// denied), each with pods, and Services that lead to addresses.
type town struct{ Objects }

func (o *town) namespace(name string, annotations map[string]string) {
	o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"outrigger.dev/inject": "enabled"}, Annotations: annotations,
	}})
}

func (o *town) pod(namespace, name, ip string, phase corev1.PodPhase) {
	o.Pods = append(o.Pods, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "1", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			ServiceAccountName: name,
			InitContainers:     []corev1.Container{{Name: sidecar.Name, RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
		},
		Status: corev1.PodStatus{Phase: phase, PodIPs: []corev1.PodIP{{IP: ip}}},
	})
}

// service makes a Service at a ClusterIP, or a headless one, that selects app and
// leads to an address, which belongs to the pod named target or, without one, to
// whatever is there.
func (o *town) service(namespace, name, clusterIP, app, address, target string) {
	o.Services = append(o.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Port: 80}},
		},
	})
	end := discoveryv1.Endpoint{Addresses: []string{address}}
	if target != "" {
		end.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: target, UID: "1"}
	}
	o.EndpointSlices = append(o.EndpointSlices, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(80))}}, Endpoints: []discoveryv1.Endpoint{end},
	})
}

// TestNobodysEndpoints holds that an address which somebody wrote down never opens
// what policy keeps shut, nor takes a pod's place.
func TestNobodysEndpoints(t *testing.T) {
	var o town
	o.namespace("open", nil)
	o.namespace("shut", map[string]string{"outrigger.dev/egress": "deny", "outrigger.dev/traffic-policy": "enforced"})
	o.pod("open", "web", "10.0.0.1", corev1.PodRunning)
	o.pod("open", "ended", "10.0.0.2", corev1.PodFailed)
	o.pod("shut", "caller", "10.0.0.3", corev1.PodRunning)
	o.pod("shut", "victim", "10.0.0.4", corev1.PodRunning)
	o.service("open", "web", "10.96.0.1", "web", "10.0.0.1", "web")
	o.service("open", "ended", "10.96.0.2", "ended", "10.0.0.2", "ended")    // its address may be another's by now
	o.service("open", "relabelled", "10.96.0.3", "other", "10.0.0.1", "web") // it has left the Service
	o.service("open", "written", "10.96.0.4", "none", "8.8.8.8", "")         // egress by another name
	o.service("open", "written-headless", corev1.ClusterIPNone, "none", "9.9.9.9", "")
	o.service("open", "thief", corev1.ClusterIPNone, "none", "10.0.0.4", "") // somebody else's pod
	o.service("shut", "astray", "172.16.0.5", "victim", "10.0.0.4", "victim")

	snap, _ := Build(o.Objects, Options{
		Mode: mesh.Permissive, AllowEgress: true, TrustDomain: "cluster.local", TrustBundle: "roots",
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	})
	reached := func(namespace, pod string) map[string][]string {
		view, ok := snap.View(mesh.ProxyID{Namespace: namespace, Pod: pod, UID: "1"})
		if !ok {
			t.Fatalf("%s/%s has no view", namespace, pod)
		}
		out := map[string][]string{}
		for _, b := range view.Outbound.Bundles {
			ends := []string{}
			for _, e := range b.Endpoints {
				ends = append(ends, e.Address.String()+" "+e.Identity.String())
			}
			out[b.Name.String()] = ends
		}
		return out
	}
	want := map[string][]string{
		"open/web:80":              {"10.0.0.1 open/web"},
		"open/ended:80":            {},
		"open/relabelled:80":       {},
		"open/written:80":          {},
		"open/written-headless:80": {},
		"open/thief:80":            {},
	}
	if diff := cmp.Diff(want, reached("shut", "caller")); diff != "" {
		t.Errorf("where egress is denied (-want +got):\n%s", diff)
	}
	want["open/written:80"] = []string{"8.8.8.8 /"}
	if diff := cmp.Diff(want, reached("open", "web")); diff != "" {
		t.Errorf("where egress is allowed (-want +got):\n%s", diff)
	}
	if ranges := snap.Settings().ServiceCIDRs; !slices.Contains(ranges, netip.MustParsePrefix("172.16.0.5/32")) {
		t.Errorf("the ranges %v do not cover every ClusterIP of the mesh: calls there would be egress", ranges)
	}
}

// TestAddressOfAnotherPod has a node, or whoever writes the status of pods, say that
// its pod has the address of somebody else's.
func TestAddressOfAnotherPod(t *testing.T) {
	var o town
	o.namespace("open", nil)
	o.pod("open", "caller", "10.0.0.1", corev1.PodRunning)
	o.pod("open", "victim", "10.0.0.2", corev1.PodRunning)
	o.pod("open", "thief", "10.0.0.2", corev1.PodRunning)
	o.service("open", "victim", "10.96.0.1", "victim", "10.0.0.2", "victim")
	o.service("open", "thief", "10.96.0.2", "thief", "10.0.0.2", "thief")
	snap, _ := Build(o.Objects, Options{
		Mode: mesh.Permissive, TrustDomain: "cluster.local", TrustBundle: "roots",
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	})
	view, _ := snap.View(mesh.ProxyID{Namespace: "open", Pod: "caller", UID: "1"})
	for _, b := range view.Outbound.Bundles {
		for _, id := range b.Identities {
			if want := (mesh.Identity{Namespace: "open", ServiceAccount: b.Name.Name}); id != want {
				t.Errorf("%s may be answered by %s: whoever answers must show the Service's own identity", b.Name, id)
			}
		}
	}
	if len(view.Outbound.Bundles) != 2 {
		t.Errorf("the caller knows %d services, want 2", len(view.Outbound.Bundles))
	}
}
