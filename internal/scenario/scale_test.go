package scenario

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// TestScalingChangesNoListener takes a Service from no pods to one and back, step
// by step: what a caller has to be sent must never be a listener, which would cut
// connections, and a pod whose account it may not call takes it all away.
func TestScalingChangesNoListener(t *testing.T) {
	s, err := Load("testdata/scaled-to-zero")
	if err != nil {
		t.Fatal(err)
	}
	cache := xds.NewCache()
	buyer := mesh.ProxyID{Namespace: "shop", Pod: "buyer-0", UID: "uid-shop-buyer-0"}
	set := func(objs ingest.Objects) *xds.Set {
		t.Helper()
		snap, _ := ingest.Build(objs, s.Options)
		v, ok := snap.View(buyer)
		if !ok {
			t.Fatal("the buyer has no view")
		}
		out, err := cache.Set(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	starting, serving := withStore(s.Objects, "store", false), withStore(s.Objects, "store", true)
	zero := set(s.Objects)
	last := zero
	for i, step := range []ingest.Objects{starting, serving, starting, s.Objects} {
		next := set(step)
		d := xds.Diff(last, next)
		if len(d.Changed[xds.Cluster]) == 0 && len(d.Changed[xds.Endpoints]) == 0 {
			t.Errorf("step %d changed nothing", i)
		}
		for _, kind := range []xds.Type{xds.Listener, xds.Route} {
			if len(d.Changed[kind]) > 0 || len(d.Removed[kind]) > 0 {
				t.Errorf("step %d changes a %s: %v %v", i, kind, d.Changed[kind], d.Removed[kind])
			}
		}
		for kind, removed := range d.Removed {
			if len(removed) > 0 {
				t.Errorf("step %d takes away %s %v", i, xds.Type(kind), removed)
			}
		}
		last = next
	}
	if last.Version() != zero.Version() {
		t.Error("there and back again is somewhere else")
	}
	strange := set(withStore(s.Objects, "stranger", true))
	if strange.Resource(xds.Listener, "shop/store:80") != nil {
		t.Error("a pod that the buyer has no grant for left it the way there")
	}
}

// withStore adds a pod of an account to the Service store, and its endpoint if it
// is ready.
func withStore(objs ingest.Objects, account string, ready bool) ingest.Objects {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "store-0", UID: "1", Labels: map[string]string{"app": "store"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: account,
			InitContainers:     []corev1.Container{{Name: "outrigger-proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
		},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.1.1.9"}}},
	}
	objs.Pods = append(slices.Clip(objs.Pods), pod)
	if !ready {
		return objs
	}
	objs.EndpointSlices = append(slices.Clip(objs.EndpointSlices), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "store-a", Labels: map[string]string{discoveryv1.LabelServiceName: "store"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}, {Name: new("tcp-admin"), Port: new(int32(7000))}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.1.1.9"},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "store-0", UID: "1"},
		}},
	})
	return objs
}
