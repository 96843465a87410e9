//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// servedCaller is a caller with a Service of its own.
func servedCaller(name string) app {
	a := caller(name)
	a.args = []string{"http-echo", "--drain=0s"}
	a.ports = map[string]int32{"http": 8080}
	return a
}

// TestClientsReachServersOfEveryKind is OSM's row 2: clients with and without a
// Service, and servers behind an address, bound to the pod's address only or to
// localhost only, and headless. Without a policy OSM closed the connection; here a call is answered
// with 403 and a reason, where there is an address of a Service to answer for: a
// headless name is the pods' own addresses, and what nothing grants goes as it is
// to the server's proxy, which takes no plain text.
func TestClientsReachServersOfEveryKind(t *testing.T) {
	t.Parallel()
	ns, callers := namespace(t, "servers", inMesh), namespace(t, "callers", inMesh)
	bound := httpEcho("bound")
	bound.args = append(bound.args, "--host=$(POD_IP)")
	bound.account = "server"
	local := httpEcho("local")
	local.args = append(local.args, "--host=127.0.0.1")
	local.account = "server"
	// The kubelet could not reach it.
	local.change = func(spec *corev1.PodSpec) { spec.Containers[0].ReadinessProbe = nil }
	httpEcho("server").create(t, ns)
	bound.create(t, ns)
	local.create(t, ns)
	headless(t, ns, "{name: http, port: 8080}")
	caller("plain").create(t, callers)
	servedCaller("served").create(t, callers)
	allow(t, ns, "server", callers+"/plain", callers+"/served")
	clients := []corev1.Pod{ready(t, callers, "app=plain"), ready(t, callers, "app=served")}
	ready(t, ns, "app=server")
	ready(t, ns, "app=bound")
	ready(t, ns, "app=local")
	servers := []string{"server", "bound", "local", "headless"}
	for _, client := range clients {
		for _, server := range servers {
			consecutive(t, client, echoURL(ns, server, "/"), "200", 5)
		}
	}
	withdraw(t, target(ns, "server", everything, callers+"/plain", callers+"/served"))
	for _, client := range clients {
		consecutive(t, client, echoURL(ns, "headless", "/"), "error", 5)
		for _, server := range []string{"server", "bound", "local"} {
			load := consecutive(t, client, echoURL(ns, server, "/"), "403", 5)
			for reason := range load.Refusals {
				if !strings.Contains(reason, spiffe(callers, client.Spec.ServiceAccountName)) && !strings.Contains(reason, callers+"/"+client.Spec.ServiceAccountName) {
					t.Errorf("the refusal by %s does not say who was refused: %s", server, reason)
				}
			}
		}
	}
}

// TestPermissiveModeAsksForNoPolicy is OSM's row 33: in permissive mode pods of the
// mesh may call, with and without a Service, and nobody else; afterwards nobody.
func TestPermissiveModeAsksForNoPolicy(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	caller("stranger").create(t, outside)
	pods := all(t, ns, httpEcho("server"), caller("plain"), servedCaller("served"))
	stranger := ready(t, outside, "app=stranger")
	url := echoURL(ns, "server", "/")
	for _, client := range pods[1:] {
		consecutive(t, client, url, "200", 5)
	}
	consecutive(t, stranger, url, "error", 5)
	annotate(t, ns, "outrigger.dev/traffic-policy", "enforced")
	for _, client := range pods[1:] {
		consecutive(t, client, url, "403", 5)
	}
	consecutive(t, stranger, url, "error", 5)
}

// TestTrafficTargetsNameWhoMayCallWhat is OSM's row 38, both cases. A policy in
// another namespace than its destination's cannot be written in the mesh; one that
// was there before the mesh is ignored.
func TestTrafficTargetsNameWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	ns, callers := namespace(t, "server", inMesh), namespace(t, "callers", outsideMesh)
	// The namespace joins the mesh with its policy.
	apply(t, "%s---\n%s", routes(callers, "everything", "{name: everything}"),
		strings.Replace(target(ns, "server", everything, callers+"/third"), "namespace: "+ns+", name: server-everything", "namespace: "+callers+", name: stray", 1))
	label(t, callers, "outrigger.dev/inject", "enabled")
	httpEcho("server").create(t, ns)
	apply(t, "%s---\n%s---\n%s", routes(ns, "routes", "{name: anything, pathRegex: /anything}, {name: foo, pathRegex: /foo}"),
		target(ns, "server", "HTTPRouteGroup/routes/anything", callers+"/first"),
		strings.Replace(target(ns, "server", "HTTPRouteGroup/routes/foo", callers+"/second"), "name: server-routes", "name: second", 1))
	pods := all(t, callers, caller("first"), caller("second"), caller("third"))
	ready(t, ns, "app=server")
	anything, foo := echoURL(ns, "server", "/anything"), echoURL(ns, "server", "/foo")
	consecutive(t, pods[0], anything, "200", 5)
	consecutive(t, pods[0], foo, "403", 5)
	consecutive(t, pods[1], foo, "200", 5)
	consecutive(t, pods[1], anything, "403", 10)
	consecutive(t, pods[2], anything, "403", 10)
	withdraw(t, target(ns, "server", "HTTPRouteGroup/routes/anything", callers+"/first"))
	consecutive(t, pods[0], anything, "403", 5)
	consecutive(t, pods[1], foo, "200", 5)
}
