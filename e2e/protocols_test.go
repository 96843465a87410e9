//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// TestEveryProtocolPasses holds connections of each protocol that a policy allows,
// and wants the denial that fits the protocol once it does not: OSM's rows 14 (gRPC)
// and 15 (TLS of the application's own, passed through as TCP), and HTTP/1.1,
// HTTP/2, WebSocket and plain TCP, on ports that are declared and on ones that are
// not.
func TestEveryProtocolPasses(t *testing.T) {
	t.Parallel()
	ns, callers := namespace(t, "server", inMesh), namespace(t, "callers", inMesh)
	web := httpEcho("web")
	web.change = func(spec *corev1.PodSpec) {
		beside("tls", "http-echo", "--drain=0s", "--identity=web", "--tls", "--port=8443")(spec)
		beside("grpc", "grpc-health", "--port=8079", "--identity=web")(spec)
		beside("grpcs", "grpc-health", "--port=9001", "--identity=web", "--tls")(spec)
		beside("tcp", "tcp-echo", "--drain=0s", "--banner=web")(spec)
	}
	web.create(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: declared}
spec:
  selector: {app: web}
  ports:
  - {name: web, port: 8080, appProtocol: http}
  - {name: secure, port: 443, targetPort: 8443, appProtocol: https}
  - {name: rpc, port: 8079, appProtocol: grpc}
  - {name: rpcs, port: 9001, appProtocol: tcp}
  - {name: echo, port: 9000, appProtocol: tcp}
---
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: sniffed}
spec:
  selector: {app: unsaid}
  ports:
  - {name: a, port: 8080}
  - {name: b, port: 443, targetPort: 8443}
  - {name: c, port: 8079}
  - {name: d, port: 9001}
  - {name: e, port: 9000}
`, ns)
	unsaid := web
	unsaid.name, unsaid.ports, unsaid.account = "unsaid", nil, "web"
	unsaid.create(t, ns)
	client := caller("client").run(t, callers)
	ready(t, ns, "app=web")
	ready(t, ns, "app=unsaid")
	policies := target(ns, "web", everything, callers+"/client") + "---\n" + target(ns, "web", "TCPRoute/tcp", callers+"/client")
	kinds := tcpRoute(ns, "tcp", "8443, 9001, 9000") + "---\n" + routes(ns, "everything", "{name: everything}")
	apply(t, "%s---\n%s", kinds, policies)

	type held struct{ url, denied string }
	var calls []held
	for _, name := range []string{"declared", "sniffed"} {
		host := service(ns, name)
		calls = append(
			calls, held{"http://" + host + ":8080/", "403"}, held{"ws://" + host + ":8080/", "403"}, held{"grpc://" + host + ":8079", "403"},
			held{"https://" + host + ":443/", "error"}, held{"grpcs://" + host + ":9001", "error"}, held{"tcp://" + host + ":9000", "error"},
		)
	}
	for _, call := range calls {
		load := consecutive(t, client, call.url, "200", 5)
		if load.Identities["web"] != 5 {
			t.Errorf("%s was answered by %v; want web", call.url, load.Identities)
		}
		for i, line := range holdFor(t, client, call.url, 20) {
			if line.Status != 200 || line.Reused != (i > 0) {
				t.Errorf("%s, answer %d: %+v; want 200 over the first connection", call.url, i, line)
			}
		}
	}
	consecutive(t, client, "http://"+service(ns, "declared")+":8080/", "200", 5, "--http2")
	if got := echo(t, client, "http://"+service(ns, "sniffed")+":8080/"); got.Protocol != "HTTP/1.1" {
		t.Errorf("the application is asked in %q; its caller asked in HTTP/1.1", got.Protocol)
	}
	// gRPC's methods are paths.
	apply(t, "%s", routes(ns, "everything", `{name: everything, pathRegex: "/grpc.health.v1.Health/.*", methods: [POST]}`))
	consecutive(t, client, "http://"+service(ns, "declared")+":8080/", "403", 5)
	consecutive(t, client, "grpc://"+service(ns, "declared")+":8079", "200", 5)

	withdraw(t, policies)
	for _, call := range calls {
		load := consecutive(t, client, call.url, call.denied, 5)
		for reason := range load.Refusals {
			if call.denied == "403" && !strings.Contains(reason, callers) {
				t.Errorf("%s: the refusal does not say who was refused: %s", call.url, reason)
			}
		}
	}
}

// holdFor returns the first answers over a connection that is kept open.
func holdFor(t *testing.T, from corev1.Pod, url string, answers int) []harness.HeldLine {
	t.Helper()
	ctx, stop := contextWithPatience(t)
	defer stop()
	lines := cluster.Hold(ctx, from, url)
	var heard []harness.HeldLine
	for range answers {
		line, open := <-lines
		if !open {
			t.Errorf("%s: after %d answers there was no more", url, len(heard))
			break
		}
		heard = append(heard, line)
	}
	return heard
}
