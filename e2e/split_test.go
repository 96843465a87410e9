//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// split returns a TrafficSplit of the Service "store" in hundredths.
func split(namespace string, v1 int) string {
	return fmt.Sprintf(`apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {namespace: %s, name: store}
spec:
  service: store
  backends: [{service: store-v1, weight: %d}, {service: store-v2, weight: %d}]
`, namespace, v1, 100-v1)
}

// TestASplitSharesOutRequests measures splits over a thousand requests, and
// changes one under load.
func TestASplitSharesOutRequests(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	versions := []app{httpEcho("store-v1"), httpEcho("store-v2")}
	for i := range versions {
		versions[i].labels = map[string]string{"shop": "store"}
	}
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: store}
spec:
  selector: {shop: store}
  ports: [{name: http, port: 8080}]
---
%[2]s`, ns, split(ns, 50))
	pods := all(t, ns, versions[0], versions[1], caller("client"), caller("watcher"))
	client, watcher := pods[2], pods[3]
	apply(t, `
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {namespace: %[1]s, name: everything}
spec:
  matches: [{name: everything}]
---
%[2]s---
%[3]s`, ns,
		target(ns, "store-v1", "HTTPRouteGroup/everything/everything", ns+"/client", ns+"/watcher"),
		target(ns, "store-v2", "HTTPRouteGroup/everything/everything", ns+"/client", ns+"/watcher"))
	shares(t, client, echoURL(ns, "store", "/"), 50)

	stop := cluster.StartLoad(t.Context(), watcher, echoURL(ns, "store", "/"), "--rate", "100")
	apply(t, "%s", split(ns, 10))
	shares(t, client, echoURL(ns, "store", "/"), 10)
	apply(t, "%s", split(ns, 100))
	shares(t, client, echoURL(ns, "store", "/"), 100)
	load, err := stop()
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Errorf("while the split was changed: %v", err)
	}
	t.Logf("%d requests were answered while the split was changed", load.Requests)
}

// shares waits until the share of v1, in hundredths, is that of a thousand
// requests, to five standard deviations.
func shares(t *testing.T, client corev1.Pod, url string, v1 int) {
	t.Helper()
	const requests = 1000
	want := float64(v1) / 100 * requests
	tolerance := 5 * math.Sqrt(want*(1-float64(v1)/100))
	eventually(t, func(ctx context.Context) error {
		load, err := cluster.Load(ctx, client, url, "--requests", fmt.Sprint(requests))
		if err == nil {
			err = load.All("200")
		}
		if err != nil {
			return err
		}
		if got := float64(load.Identities["store-v1"]); math.Abs(got-want) > tolerance {
			return fmt.Errorf("v1 answered %.0f of %d; %.0f ± %.0f wanted", got, requests, want, tolerance)
		}
		t.Logf("%d/%d: v1 %d, v2 %d", v1, 100-v1, load.Identities["store-v1"], load.Identities["store-v2"])
		return nil
	})
}
