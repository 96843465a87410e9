//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestAServiceMayHaveSeveralPorts is OSM's row 29: ports that lead to other numbers,
// in permissive mode, ten times each without a failure after the first success.
func TestAServiceMayHaveSeveralPorts(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	server := httpEcho("first")
	server.ports = map[string]int32{"first": 8080, "second": 9090}
	server.change = beside("second", "http-echo", "--drain=0s", "--identity=second", "--port=9090")
	server.create(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: several}
spec:
  selector: {app: first}
  ports:
  - {name: http-first, port: 80, targetPort: first}
  - {name: http-second, port: 9091, targetPort: 9090}
  - {name: third, port: 14001, targetPort: 8080}
`, ns)
	from := caller("client").run(t, ns)
	ready(t, ns, "app=first")
	for port, identity := range map[string]string{"80": "first", "9091": "second", "14001": "first"} {
		load := consecutive(t, from, "http://"+service(ns, "several")+":"+port+"/", "200", 10)
		if load.Identities[identity] != 10 {
			t.Errorf("port %s was answered by %v; want %s", port, load.Identities, identity)
		}
	}
}

// TestAPodMayHaveSeveralServices is OSM's row 30.
func TestAPodMayHaveSeveralServices(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: other}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
`, ns)
	allow(t, ns, "server", ns+"/client")
	consecutive(t, pods[1], echoURL(ns, "server", "/"), "200", 5)
	consecutive(t, pods[1], "http://"+service(ns, "other")+"/", "200", 5)
}

// TestServicesAreCalledInEveryWay calls a service by its address, by an alias, and
// through addresses that somebody wrote by hand, and has a pod call itself.
func TestServicesAreCalledInEveryWay(t *testing.T) {
	t.Parallel()
	ns, half, outside := namespace(t, "on", inMesh), namespace(t, "half", inMesh), namespace(t, "outside", outsideMesh)
	annotate(t, half, "outrigger.dev/traffic-policy", "permissive")
	httpEcho("foreign").create(t, outside)
	server := httpEcho("server")
	server.image = "client" // it calls, too
	pods := all(t, ns, server, caller("client"), caller("stranger"))
	foreign := ready(t, outside, "app=foreign")
	allow(t, ns, "server", ns+"/client", ns+"/server")
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: alias}
spec: {type: ExternalName, externalName: %[2]s}
---
%[3]s---
%[4]s`, ns, service(ns, "server"), byHand(ns, foreign.Status.PodIP), byHand(half, foreign.Status.PodIP))
	var address corev1.Service
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "server"}, &address); err != nil {
		t.Fatal(err)
	}
	self := func(url string) {
		t.Helper()
		load := consecutive(t, pods[0], url, "200", 5)
		if load.Identities["server"] != 5 {
			t.Errorf("the pod called itself at %s, and %v answered", url, load.Identities)
		}
	}
	self(echoURL(ns, "server", "/"))
	self("http://" + pods[0].Status.PodIP + ":8080/")
	self("http://127.0.0.1:8080/")

	ways := map[string]string{
		"by address": fmt.Sprintf("http://%s:8080/", address.Spec.ClusterIP),
		"by alias":   echoURL(ns, "alias", "/"),
	}
	for way, url := range ways {
		load := consecutive(t, pods[1], url, "200", 5)
		if load.Identities["server"] != 5 {
			t.Errorf("%s: %v answered; want server", way, load.Identities)
		}
		// Whatever the way, policy holds.
		consecutive(t, pods[2], url, "403", 5)
	}
	// A Service whose addresses somebody wrote has no identity that a policy could
	// name: it is open where no policy is asked for.
	if load := consecutive(t, pods[1], "http://"+service(half, "by-hand")+"/", "200", 5); load.Identities["foreign"] != 5 {
		t.Errorf("%v answered; want foreign", load.Identities)
	}
	consecutive(t, pods[1], "http://"+service(ns, "by-hand")+"/", "403", 5)
}

// byHand is a Service without a selector that leads to port 8080 of an address.
func byHand(namespace, address string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: by-hand}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: %[1]s, name: by-hand-1, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [%[2]s], conditions: {ready: true}}]
`, namespace, address)
}

// TestOtherProtocolsPassUntouched asks the cluster's DNS over UDP, and pings pods,
// from a pod whose namespace denies egress.
func TestOtherProtocolsPassUntouched(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	annotate(t, ns, "outrigger.dev/egress", "deny")
	httpEcho("server").create(t, outside)
	pinger := caller("client")
	pinger.change = func(spec *corev1.PodSpec) {
		spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(0)), RunAsGroup: new(int64(0))}
	}
	from := pinger.run(t, ns)
	stranger := ready(t, outside, "app=server")
	for what, command := range map[string][]string{
		"DNS over UDP": {"nslookup", "-type=a", service(outside, "server")},
		"ICMP":         {"ping", "-c", "3", "-W", "2", stranger.Status.PodIP},
	} {
		result, err := cluster.Exec(t.Context(), from, from.Spec.Containers[0].Name, command...)
		if err != nil || result.Code != 0 {
			t.Errorf("%s does not pass: %s%s (%v)", what, result.Stdout, result.Stderr, err)
		}
	}
	// What TCP brings is refused meanwhile.
	answers(t, from, "http://"+stranger.Status.PodIP+":8080/", 403)
	if result, err := cluster.Exec(t.Context(), from, from.Spec.Containers[0].Name, "nslookup", "-type=a", service(outside, "server")); err != nil || !strings.Contains(result.Stdout, "Address") {
		t.Errorf("a name has no address: %s%s (%v)", result.Stdout, result.Stderr, err)
	}
}
