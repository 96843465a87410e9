//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// rounds is how often in a row something must hold, as in OSM's tests.
const rounds = 5

// seen waits until in five rounds, one after the other, every request is answered
// and all pods answer some. It returns what the last round counted.
func seen(t *testing.T, from corev1.Pod, url string, pods int, flags ...string) harness.Load {
	t.Helper()
	flags = append([]string{fmt.Sprintf("--requests=%d", 12*pods), "--concurrency=4"}, flags...)
	if !strings.HasPrefix(url, "http:") {
		flags = append(flags, "--keep-alive=false")
	}
	var load harness.Load
	eventually(t, func(ctx context.Context) error {
		for round := range rounds {
			var err error
			if load, err = cluster.Load(ctx, from, url, flags...); err == nil {
				err = load.All("200")
			}
			if err == nil && len(load.Identities) != pods {
				err = fmt.Errorf("%d pods answered: %v; want %d", len(load.Identities), load.Identities, pods)
			}
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", url, round, err)
			}
		}
		return nil
	})
	return load
}

// named is an httpEcho that answers with the name of its pod, and a TCP server
// beside it, at port 9000, that says that name first.
func named(name string) app {
	a := httpEcho(name)
	a.args[2] = "--identity=$(POD_NAME)"
	a.ports["tcp"] = 9000
	a.change = beside("tcp", "tcp-echo", "--drain=0s", "--banner=$(POD_NAME)")
	return a
}

// TestEveryClientReachesEveryServer is OSM's rows 5 and 6: by the address of the
// Service, and by the names of a headless one. (OSM has 25 clients in 5 namespaces;
// three in two are what this machine bears.)
func TestEveryClientReachesEveryServer(t *testing.T) {
	t.Parallel()
	servers := namespace(t, "servers", inMesh)
	const replicas = 5
	named("server").deploy(t, servers, replicas)
	headless(t, servers, "{name: http, port: 8080}, {name: tcp, port: 9000}")
	several, one := namespace(t, "several", inMesh), namespace(t, "one", inMesh)
	caller("client").deploy(t, several, 2)
	caller("client").deploy(t, one, 1)
	allow(t, servers, "server", several+"/client", one+"/client")
	allowTCP(t, servers, "server", "9000", several+"/client", one+"/client")
	clients := append(readyAll(t, several, "app=client", 2), readyAll(t, one, "app=client", 1)...)
	readyAll(t, servers, "app=server", replicas)
	for _, client := range clients {
		for _, name := range []string{"server", "headless"} {
			// Which pod a headless name leads to is found anew for each connection.
			seen(t, client, echoURL(servers, name, "/"), replicas, "--keep-alive=false")
		}
	}
	seen(t, clients[0], "tcp://"+service(servers, "server")+":9000", replicas)
	seen(t, clients[0], "tcp://"+service(servers, "headless")+":9000", replicas)
}

// backends creates Services shop-1 to shop-5 of port 8080 and 9000 and a Service
// "shop" of all their pods, and splits the calls of that evenly.
func backends(t *testing.T, ns string) {
	t.Helper()
	var split strings.Builder
	fmt.Fprintf(&split, `apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {namespace: %s, name: shop}
spec:
  service: shop
  backends:
`, ns)
	for i := range 5 {
		fmt.Fprintf(&split, "  - {service: shop-%d, weight: 20}\n", i+1)
	}
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: shop}
spec:
  selector: {part-of: shop}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
---
%[2]s`, ns, split.String())
}

// shopPart is one of the backends.
func shopPart(number int) app {
	a := named(fmt.Sprintf("shop-%d", number))
	a.labels = map[string]string{"part-of": "shop"}
	return a
}

// TestASplitReachesEveryBackend is OSM's row 44: five Services of two pods each, by
// HTTP and by TCP, enforced and permissive. (OSM has ten clients; two here.)
func TestASplitReachesEveryBackend(t *testing.T) {
	t.Parallel()
	ns, callers, others := namespace(t, "shop", inMesh), namespace(t, "callers", inMesh), namespace(t, "others", inMesh)
	const pods = 10
	backends(t, ns)
	for i := range 5 {
		shopPart(i+1).deploy(t, ns, 2)
	}
	caller("client").create(t, callers)
	caller("client").create(t, others)
	var policy []string
	for i := range 5 {
		name := fmt.Sprintf("shop-%d", i+1)
		for _, rule := range []string{everything, "TCPRoute/tcp"} {
			policy = append(policy, target(ns, name, rule, callers+"/client", others+"/client"))
		}
	}
	apply(t, "%s---\n%s---\n%s", routes(ns, "everything", "{name: everything}"), tcpRoute(ns, "tcp", "9000"), strings.Join(policy, "---\n"))
	clients := []corev1.Pod{ready(t, callers, "app=client"), ready(t, others, "app=client")}
	readyAll(t, ns, "part-of=shop", pods)

	everywhere := func() {
		t.Helper()
		for _, client := range clients {
			seen(t, client, echoURL(ns, "shop", "/"), pods)
			seen(t, client, "tcp://"+service(ns, "shop")+":9000", pods)
		}
		for i := range 5 {
			consecutive(t, clients[0], echoURL(ns, fmt.Sprintf("shop-%d", i+1), "/"), "200", 2)
		}
	}
	everywhere()
	for _, object := range policy {
		withdraw(t, object)
	}
	consecutive(t, clients[0], echoURL(ns, "shop", "/"), "403", rounds)
	consecutive(t, clients[0], "tcp://"+service(ns, "shop")+":9000", "error", rounds)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	everywhere()
}

// TestASplitHoldsForWhatEntersThroughAGateway is OSM's row 45, five Services whose
// pods share a service account (one pod each here), and proves beside it that a
// split applies to traffic from outside: it enters through a pod of the mesh that
// runs a proxy of its own, as ingress controllers do, and calls the apex.
func TestASplitHoldsForWhatEntersThroughAGateway(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "shop", inMesh), namespace(t, "outside", outsideMesh)
	backends(t, ns)
	for i := range 5 {
		part := shopPart(i + 1)
		part.account = "shop"
		part.create(t, ns)
	}
	caller("client").create(t, ns)
	caller("visitor").create(t, outside)
	gateway(ns).create(t, ns)
	allow(t, ns, "shop", ns+"/client", ns+"/gateway")
	allowTCP(t, ns, "shop", "9000", ns+"/client")
	readyAll(t, ns, "part-of=shop", 5)
	client, visitor := ready(t, ns, "app=client"), ready(t, outside, "app=visitor")
	ready(t, ns, "app=gateway")
	seen(t, client, echoURL(ns, "shop", "/"), 5)
	seen(t, client, "tcp://"+service(ns, "shop")+":9000", 5)
	for i := range 5 {
		consecutive(t, client, echoURL(ns, fmt.Sprintf("shop-%d", i+1), "/"), "200", 2)
	}
	seen(t, visitor, echoURL(ns, "gateway", "/"), 5)
	// It cannot go round the gateway.
	consecutive(t, visitor, echoURL(ns, "shop", "/"), "error", rounds)

	// The gateway sees a changed split as others do.
	apply(t, `
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {namespace: %s, name: shop}
spec:
  service: shop
  backends: [{service: shop-2, weight: 1}, {service: shop-3, weight: 0}]
`, ns)
	load := seen(t, visitor, echoURL(ns, "gateway", "/"), 1)
	if load.Identities["shop-2"] == 0 {
		t.Errorf("all weight is on shop-2, but %v answered", load.Identities)
	}
}

// gateway is an Envoy with a configuration of its own that leads from port 8080,
// which is open to the outside, to the Service "shop".
func gateway(ns string) app {
	config := fmt.Sprintf(`{"static_resources": {
  "listeners": [{"address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}, "filter_chains": [{"filters": [{
    "name": "http", "typed_config": {
      "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
      "stat_prefix": "in",
      "http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
      "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "shop"}}]}]}
    }}]}]}],
  "clusters": [{"name": "shop", "type": "STRICT_DNS", "connect_timeout": "5s", "load_assignment": {"cluster_name": "shop", "endpoints": [{
    "lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": 8080}}}}]}]}}]
}}`, service(ns, "shop"))
	a := app{
		name: "gateway", image: "outrigger-proxy", ports: map[string]int32{"http": 8080},
		annotations: map[string]string{"outrigger.dev/inbound-port-exclusion-list": "8080"},
		args:        []string{"--config-yaml", config, "--concurrency", "1", "--use-dynamic-base-id"},
	}
	a.change = func(spec *corev1.PodSpec) {
		spec.Containers[0].Command = []string{"/usr/local/bin/envoy"}
		// Not the user whose traffic the redirect rules let pass.
		spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(101)), RunAsGroup: new(int64(101))}
	}
	return a
}
