//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestOlderVersionsOfSMIAreHonoured applies each kind in the versions that users
// may still have, and reads one back in the newest.
func TestOlderVersionsOfSMIAreHonoured(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: store}
spec:
  selector: {shop: store}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
---
apiVersion: specs.smi-spec.io/v1alpha1
kind: HTTPRouteGroup
metadata: {namespace: %[1]s, name: first}
matches: [{name: books, pathRegex: "/books.*", methods: [GET]}]
---
apiVersion: specs.smi-spec.io/v1alpha2
kind: HTTPRouteGroup
metadata: {namespace: %[1]s, name: second}
matches: [{name: testers, headers: [{user: ".*@test"}]}]
---
apiVersion: specs.smi-spec.io/v1alpha3
kind: HTTPRouteGroup
metadata: {namespace: %[1]s, name: third}
spec: {matches: [{name: carts, pathRegex: /carts, methods: ["*"]}]}
---
apiVersion: specs.smi-spec.io/v1alpha1
kind: TCPRoute
metadata: {namespace: %[1]s, name: any}
---
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {namespace: %[1]s, name: first}
destination: {kind: ServiceAccount, name: store-v1, namespace: %[1]s, port: 8080}
specs:
- {kind: HTTPRouteGroup, name: first, matches: [books]}
- {kind: HTTPRouteGroup, name: second, matches: [testers]}
sources: [{kind: ServiceAccount, name: client, namespace: %[1]s}]
---
apiVersion: access.smi-spec.io/v1alpha2
kind: TrafficTarget
metadata: {namespace: %[1]s, name: second}
spec:
  destination: {kind: ServiceAccount, name: store-v2, namespace: %[1]s}
  rules: [{kind: HTTPRouteGroup, name: third, matches: [carts]}, {kind: HTTPRouteGroup, name: first, matches: [books]}]
  sources: [{kind: ServiceAccount, name: client, namespace: %[1]s}]
---
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {namespace: %[1]s, name: tcp}
destination: {kind: ServiceAccount, name: store-v1, namespace: %[1]s, port: 9000}
specs: [{kind: TCPRoute, name: any}]
sources: [{kind: ServiceAccount, name: client, namespace: %[1]s}]
---
apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata: {namespace: %[1]s, name: store}
spec:
  service: store
  backends: [{service: store-v1, weight: 75}, {service: store-v2, weight: 25}]
`, ns)
	first, second := named("store-v1"), named("store-v2")
	first.args[2], second.args[2] = "--identity=store-v1", "--identity=store-v2"
	first.labels, second.labels = map[string]string{"shop": "store"}, map[string]string{"shop": "store"}
	pods := all(t, ns, first, second, caller("client"))
	from := pods[2]
	consecutive(t, from, echoURL(ns, "store-v1", "/books"), "200", 5)
	consecutive(t, from, echoURL(ns, "store-v1", "/carts"), "403", 5)
	consecutive(t, from, echoURL(ns, "store-v1", "/carts"), "200", 5, "--header=user: me@test")
	consecutive(t, from, echoURL(ns, "store-v2", "/carts"), "200", 5, "--method=PUT")
	shares(t, from, echoURL(ns, "store", "/books"), 75)
	consecutive(t, from, "tcp://"+service(ns, "store-v1")+":9000", "200", 5)
	consecutive(t, from, "tcp://"+service(ns, "store-v2")+":9000", "error", 5)

	newest := &unstructured.Unstructured{}
	newest.SetAPIVersion("access.smi-spec.io/v1alpha3")
	newest.SetKind("TrafficTarget")
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "first"}, newest); err != nil {
		t.Fatal(err)
	}
	rules, _, err := unstructured.NestedSlice(newest.Object, "spec", "rules")
	if err != nil || len(rules) != 2 {
		t.Errorf("the oldest version reads, in the newest, %v (%v); want two rules", newest.Object["spec"], err)
	}
}

// TestATrafficTargetLiesWithItsDestination is OSM's row 48: the API server refuses
// one in another namespace than its destination's, in the mesh and only there.
func TestATrafficTargetLiesWithItsDestination(t *testing.T) {
	t.Parallel()
	ns, other, outside := namespace(t, "on", inMesh), namespace(t, "other", inMesh), namespace(t, "outside", outsideMesh)
	in := func(namespace string) string {
		return strings.Replace(target(ns, "server", everything, other+"/client"), "namespace: "+ns+", name: server-everything", "namespace: "+namespace+", name: target", 1)
	}
	apply(t, "%s", in(ns))
	apply(t, "%s", in(outside))
	err := cluster.Apply(t.Context(), in(other))
	if err == nil {
		t.Fatal("a TrafficTarget in another namespace than its destination's was taken")
	}
	for _, want := range []string{other, ns, "spec.destination.namespace"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not name %q: %v", want, err)
		}
	}
}

// TestWhatCannotBeHonouredIsTold makes an object that waits for another one, and
// wants it on the object, in an Event, and in what `outrigger check policy` prints,
// until the other is there.
func TestWhatCannotBeHonouredIsTold(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	apply(t, "%s", target(ns, "server", "HTTPRouteGroup/missing/all", ns+"/client"))
	accepted := func(want string) {
		t.Helper()
		eventually(t, func(ctx context.Context) error {
			object := &unstructured.Unstructured{}
			object.SetAPIVersion("access.smi-spec.io/v1alpha3")
			object.SetKind("TrafficTarget")
			if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "server-missing"}, object); err != nil {
				return err
			}
			conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
			for _, c := range conditions {
				if condition, ok := c.(map[string]any); ok && condition["type"] == "Accepted" && condition["status"] == want {
					return nil
				}
			}
			return fmt.Errorf("the conditions are %v (%w); want Accepted=%s", conditions, err, want)
		})
	}
	accepted("False")
	eventually(t, func(ctx context.Context) error {
		events, err := cluster.Set.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "type=" + corev1.EventTypeWarning})
		if err != nil {
			return err
		}
		for _, event := range events.Items {
			if event.InvolvedObject.Kind == "TrafficTarget" && strings.Contains(event.Message, "missing") {
				t.Logf("%s: %s", event.Reason, event.Message)
				return nil
			}
		}
		return fmt.Errorf("no event tells of it: %v", events.Items)
	})
	text, err := cluster.CLI(t.Context(), "check", "policy", "-n", ns)
	if err == nil || !strings.Contains(text, "server-missing") || !strings.Contains(text, ns) {
		t.Errorf("check policy does not tell of it, or ends well: %s (%v)", text, err)
	}
	apply(t, "%s", routes(ns, "missing", "{name: all}"))
	accepted("True")
	if text, err := cluster.CLI(t.Context(), "check", "policy", "-n", ns); err != nil {
		t.Errorf("nothing is wrong any more, but check policy says %s (%v)", text, err)
	}
}

// TestWhatAnnotationsMayNotSayIsRefused asks the API server to take values that
// are not allowed.
func TestWhatAnnotationsMayNotSayIsRefused(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	for _, object := range []string{
		"apiVersion: v1\nkind: Service\nmetadata: {namespace: " + ns + ", name: slow, annotations: {outrigger.dev/timeout: soon}}\nspec: {ports: [{port: 80}]}\n",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: " + ns + ", annotations: {outrigger.dev/traffic-policy: open}}\n",
	} {
		err := cluster.Apply(t.Context(), object)
		if err == nil {
			t.Errorf("it was taken:\n%s", object)
			continue
		}
		if !strings.Contains(err.Error(), "outrigger.dev/") || !strings.Contains(err.Error(), "is not allowed; use") {
			t.Errorf("the refusal does not say what is allowed: %v", err)
		}
	}
}
