//go:build e2e

package e2e

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// annotateService changes annotations of a Service; nil removes one.
func annotateService(t *testing.T, namespace, name string, annotations map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{}
	service.Namespace, service.Name = namespace, name
	if err := cluster.Client.Patch(t.Context(), service, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		t.Fatal(err)
	}
}

// TestAServiceSaysHowItIsCalled gives a Service a timeout and retries, and takes
// them away again.
func TestAServiceSaysHowItIsCalled(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	server := httpEcho("server")
	server.args = append(server.args, "--slow=1500ms", "--fail-every=2")
	pods := all(t, ns, server, caller("client"))
	from := pods[1]
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	// Every second request fails.
	answers(t, from, url, 200)
	load, err := cluster.Load(t.Context(), from, url, "--requests=20")
	if err != nil || load.Codes["503"] != 10 {
		t.Errorf("without retries: %v (%v); want every second request to fail", load.Codes, err)
	}
	annotateService(t, ns, "server", map[string]any{
		"outrigger.dev/retry-on": "503", "outrigger.dev/retry-attempts": "3", "outrigger.dev/timeout": "700ms",
	})
	consecutive(t, from, url, "200", 20)
	// One of two tries takes 1.5 s, the other fails at once.
	consecutive(t, from, echoURL(ns, "server", "/slow"), "504", 4)
	annotateService(t, ns, "server", map[string]any{
		"outrigger.dev/retry-on": nil, "outrigger.dev/retry-attempts": nil, "outrigger.dev/timeout": nil,
	})
	answers(t, from, echoURL(ns, "server", "/slow"), 200)
	answers(t, from, url, 503)
}
