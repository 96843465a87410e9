//go:build e2e

package e2e

import (
	"testing"
)

// TestAnnotationsSayWhoMayCall lets callers in without SMI objects: one by name, all
// of the mesh on one Service, and plain text on one port.
func TestAnnotationsSayWhoMayCall(t *testing.T) {
	t.Parallel()
	ns, callers, outside := namespace(t, "on", inMesh), namespace(t, "callers", inMesh), namespace(t, "outside", outsideMesh)
	caller("visitor").create(t, outside)
	server := httpEcho("server")
	server.change = beside("second", "http-echo", "--drain=0s", "--identity=second", "--port=9090")
	server.create(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: open}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 9090}]
`, ns)
	pods := all(t, callers, caller("friend"), caller("stranger"))
	friend, stranger := pods[0], pods[1]
	visitor := ready(t, outside, "app=visitor")
	ready(t, ns, "app=server")
	url, open := echoURL(ns, "server", "/"), "http://"+service(ns, "open")+"/"
	for _, pod := range pods {
		consecutive(t, pod, url, "403", 5)
	}
	annotateService(t, ns, "server", map[string]any{"outrigger.dev/allow-from": callers + "/friend"})
	consecutive(t, friend, url, "200", 5)
	consecutive(t, stranger, url, "403", 5)
	consecutive(t, friend, open, "403", 5)

	annotateService(t, ns, "open", map[string]any{"outrigger.dev/traffic-policy": "permissive"})
	consecutive(t, stranger, open, "200", 5)
	consecutive(t, stranger, url, "403", 5)
	consecutive(t, visitor, open, "error", 5)

	annotateService(t, ns, "open", map[string]any{"outrigger.dev/mtls": "80=permissive"})
	consecutive(t, visitor, open, "200", 5)
	consecutive(t, visitor, url, "error", 5)
	// Whoever is in the mesh still speaks mutual TLS.
	if got := echo(t, stranger, open); len(got.Headers["X-Forwarded-Client-Cert"]) == 0 {
		t.Error("the application is not told who of the mesh calls")
	}
	annotateService(t, ns, "open", map[string]any{"outrigger.dev/mtls": nil, "outrigger.dev/traffic-policy": nil})
	consecutive(t, visitor, open, "error", 5)
	consecutive(t, stranger, open, "403", 5)
	annotateService(t, ns, "server", map[string]any{"outrigger.dev/allow-from": nil})
	consecutive(t, friend, url, "403", 5)
}
