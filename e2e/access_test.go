//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// A shop is a server with callers in another namespace.
type shop struct {
	ns, callers                  string
	server, friend, acquaintance corev1.Pod
	stranger                     corev1.Pod
}

// openShop runs a server with an HTTP and a TCP port, a friend and an
// acquaintance whom policies may name, and a stranger whom none does.
func openShop(t *testing.T) shop {
	t.Helper()
	s := shop{ns: namespace(t, "server", inMesh), callers: namespace(t, "callers", inMesh)}
	server := httpEcho("server")
	server.ports["tcp"] = 9000
	server.change = func(spec *corev1.PodSpec) {
		spec.Containers = append(spec.Containers, corev1.Container{
			Name: "tcp", Image: cluster.Image("bookstore"), Args: []string{"tcp-echo", "--drain=0s", "--banner=" + bannerText},
		})
	}
	server.create(t, s.ns)
	callers := all(t, s.callers, caller("friend"), caller("acquaintance"), caller("stranger"))
	s.friend, s.acquaintance, s.stranger = callers[0], callers[1], callers[2]
	s.server = ready(t, s.ns, "app=server")
	return s
}

func (s shop) url(path string) string { return echoURL(s.ns, "server", path) }

func (s shop) tcp() string { return service(s.ns, "server") + ":9000" }

// TestEnforcedModeAllowsWhatAPolicyNames goes through what a TrafficTarget may say.
func TestEnforcedModeAllowsWhatAPolicyNames(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	apply(t, `
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {namespace: %[1]s, name: routes}
spec:
  matches:
  - {name: ok, pathRegex: "/ok.*", methods: [GET]}
  - {name: order, pathRegex: /orders, methods: [POST, PUT], headers: [{x-shop: "a|b"}]}
  - {name: elsewhere, pathRegex: /elsewhere}
---
%[2]s---
%[3]s`, s.ns,
		target(s.ns, "server", "HTTPRouteGroup/routes/ok,order", s.callers+"/friend"),
		strings.Replace(target(s.ns, "server", "HTTPRouteGroup/routes/elsewhere", s.callers+"/acquaintance"), "server-routes", "server-acquaintance", 1))
	answers(t, s.friend, s.url("/ok"), 200)
	answers(t, s.acquaintance, s.url("/elsewhere"), 200)

	cases := map[string]struct {
		path  string
		flags []string
		want  int
	}{
		"path":                           {path: "/ok/then", want: 200},
		"path with query":                {path: "/ok?a=/admin", want: 200},
		"another path":                   {path: "/admin", want: 403},
		"the rule's path inside another": {path: "/not/ok", want: 403},
		"a path of another's":            {path: "/elsewhere", want: 403},
		"another method":                 {path: "/ok", flags: []string{"--method=POST"}, want: 403},
		"method and header":              {path: "/orders", flags: []string{"--method=PUT", "--header=x-shop: b"}, want: 200},
		"header missing":                 {path: "/orders", flags: []string{"--method=POST"}, want: 403},
		"header with more":               {path: "/orders", flags: []string{"--method=POST", "--header=x-shop: bb"}, want: 403},
	}
	for name, tc := range cases {
		answer := answersNow(t, s.friend, s.url(tc.path), tc.want, tc.flags...)
		if tc.want == 403 && !strings.Contains(answer.Refusal, spiffe(s.callers, "friend")) {
			t.Errorf("%s: the refusal does not say who was refused: %s", name, answer.Refusal)
		}
	}
	// Whom no policy names is refused by the own proxy already.
	answer := answersNow(t, s.stranger, s.url("/ok"), 403)
	for _, want := range []string{s.callers + "/stranger", "enforced", "outrigger why"} {
		if !strings.Contains(answer.Refusal, want) {
			t.Errorf("the refusal does not say %q: %s", want, answer.Refusal)
		}
	}
	// A rule for HTTP opens no other port.
	closed(t, s.friend, s.tcp())

	// What an application would take for /admin is /admin to the rule.
	for _, path := range []string{
		"/ok/../admin", "/ok/./../admin", "/ok/x/../../admin", "/ok//../../admin", "/ok/../../admin", "//admin", "/./admin",
		"/ok/%2e%2e/admin", "/ok/%2E%2E/admin", "/ok/.%2e/admin", "/ok/..%2fadmin", "/ok/%2e%2e%2fadmin", "/ok/..%5cadmin", `/ok/..\admin`,
	} {
		answer, err := cluster.Call(t.Context(), s.friend, s.url(path))
		if err != nil {
			t.Error(err)
		} else if answer.Status != 403 && answer.Status != 400 {
			t.Errorf("%s was answered with %d %s; want 403 or 400", path, answer.Status, answer.Error)
		}
	}
	// The application gets the path that the rule was held against.
	if got := echo(t, s.friend, s.url("/ok//./then/../now")); got.Path != "/ok/now" {
		t.Errorf("the application was asked for %q, want /ok/now", got.Path)
	}
}

func TestATCPRouteOpensItsPortToItsCallers(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	closed(t, s.friend, s.tcp())
	apply(t, `
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {namespace: %s, name: echo}
spec:
  matches: {ports: [9000]}
---
%s`, s.ns, target(s.ns, "server", "TCPRoute/echo", s.callers+"/friend"))
	opens(t, s.friend, s.tcp(), bannerText)
	opens(t, s.friend, s.tcp(), "hello", "--send", "hello")
	closed(t, s.stranger, s.tcp())
	// It opens no HTTP.
	answersNow(t, s.friend, s.url("/ok"), 403)

	if err := cluster.Delete(t.Context(), target(s.ns, "server", "TCPRoute/echo", s.callers+"/friend")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		received, _, err := cluster.Connect(ctx, s.friend, s.tcp(), "--timeout", "1s")
		if err == nil && received != "" {
			err = fmt.Errorf("the port is still open: %q", received)
		}
		return err
	})
}

// TestABannerIsNotLeakedToWhoIsDenied goes round the client's proxy, which would
// refuse already: it speaks to the server's with a certificate of the mesh.
func TestABannerIsNotLeakedToWhoIsDenied(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	outside := namespace(t, "outside", outsideMesh)
	tunnel := caller("tunnel").run(t, outside)
	apply(t, `
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {namespace: %s, name: echo}
spec:
  matches: {ports: [9000]}
---
%s`, s.ns, target(s.ns, "server", "TCPRoute/echo", s.callers+"/friend"))
	opens(t, s.friend, s.tcp(), bannerText)

	name := "9000.server." + s.ns + ".outrigger"
	for who, pod := range map[string]corev1.Pod{"friend": s.friend, "stranger": s.stranger} {
		got := speakTLS(t, tunnel, s.server.Status.PodIP+":9000", name, certificateOf(t, tunnel, pod))
		if want := map[string]string{"friend": bannerText}[who]; strings.TrimSpace(got) != want {
			t.Errorf("the %s was told %q, want %q", who, got, want)
		}
	}
}

// TestADeletedPolicyHoldsOnOpenConnections holds a connection on which requests
// are answered, and wants the answer to change at once. While another policy names
// the caller, the server refuses on that same connection; with the last one the
// caller's proxy forgets the service, and may also end the connection in good order.
func TestADeletedPolicyHoldsOnOpenConnections(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	allow(t, s.ns, "server", s.callers+"/friend")
	answers(t, s.friend, s.url("/"), 200)
	policy := target(s.ns, "server", "HTTPRouteGroup/everything/everything", s.callers+"/friend")

	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	lines := cluster.Hold(ctx, s.friend, s.url("/"))
	next := func(status int, since time.Time) harness.HeldLine {
		t.Helper()
		line, _, err := harness.Until(ctx, lines, status)
		if err != nil {
			t.Fatal(err)
		}
		if took := line.Time.Sub(since); took > 10*time.Second {
			t.Errorf("the answer was %d only after %s", status, took)
		} else {
			t.Logf("%d after %d ms", status, took.Milliseconds())
		}
		return line
	}
	next(200, time.Now())
	other := fmt.Sprintf(`apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {namespace: %s, name: elsewhere}
spec:
  matches: [{name: elsewhere, pathRegex: /elsewhere}]
---
`, s.ns) + target(s.ns, "server", "HTTPRouteGroup/elsewhere/elsewhere", s.callers+"/friend")
	apply(t, "%s", other)
	answers(t, s.friend, s.url("/elsewhere"), 200)
	for round := range 4 {
		const last = 2 // from here on there is no other policy
		if round == last {
			if err := cluster.Delete(t.Context(), other); err != nil {
				t.Fatal(err)
			}
		}
		changed := time.Now()
		if err := cluster.Delete(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		if line := next(403, changed); round < last && !line.Reused {
			t.Error("the denial came over a new connection")
		}
		for range 20 {
			if line := <-lines; line.Status != 403 {
				t.Errorf("after the denial there was an answer %d %s", line.Status, line.Error)
			}
		}
		changed = time.Now()
		apply(t, "%s", policy)
		next(200, changed)
	}
}

// TestANamespaceOverridesTheMode switches a namespace to permissive and back,
// under pods that run.
func TestANamespaceOverridesTheMode(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	for _, from := range []corev1.Pod{s.friend, s.stranger} {
		answersNow(t, from, s.url("/"), 403)
	}
	for range 2 {
		annotate(t, s.ns, "outrigger.dev/traffic-policy", "permissive")
		for _, from := range []corev1.Pod{s.friend, s.stranger} {
			answers(t, from, s.url("/"), 200)
			opens(t, from, s.tcp(), bannerText)
		}
		// Still mutual TLS: the application is told who calls.
		got := echo(t, s.stranger, s.url("/"))
		if want := spiffe(s.callers, "stranger"); !strings.Contains(strings.Join(got.Headers["X-Forwarded-Client-Cert"], ";"), want) {
			t.Errorf("in permissive mode the application hears that its caller is %v, want %s", got.Headers["X-Forwarded-Client-Cert"], want)
		}
		annotate(t, s.ns, "outrigger.dev/traffic-policy", "enforced")
		for _, from := range []corev1.Pod{s.friend, s.stranger} {
			answers(t, from, s.url("/"), 403)
		}
		eventually(t, func(ctx context.Context) error {
			received, _, err := cluster.Connect(ctx, s.stranger, s.tcp(), "--timeout", "1s")
			if err == nil && received != "" {
				err = fmt.Errorf("the TCP port is still open: %q", received)
			}
			return err
		})
	}
}
