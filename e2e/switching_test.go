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

// A vigil holds one connection of each protocol open, and sends requests, through
// whatever is changed meanwhile.
type vigil struct {
	client corev1.Pod
	stop   context.CancelFunc
	held   map[string]chan []harness.HeldLine // by URL
	load   func() (harness.Load, error)
}

// keepVigil begins when every call has been answered once.
func keepVigil(t *testing.T, client corev1.Pod, urls ...string) *vigil {
	t.Helper()
	v := &vigil{client: client, held: map[string]chan []harness.HeldLine{}}
	for _, url := range urls {
		consecutive(t, client, url, "200", 5)
	}
	var ctx context.Context
	ctx, v.stop = context.WithCancel(t.Context())
	for _, url := range urls {
		lines, all := cluster.Hold(ctx, client, url, "--interval=50ms"), make(chan []harness.HeldLine, 1)
		first := <-lines
		go func() {
			heard := []harness.HeldLine{first}
			for line := range lines {
				heard = append(heard, line)
			}
			all <- heard
		}()
		v.held[url] = all
	}
	v.load = cluster.StartLoad(t.Context(), client, urls[0], "--rate", "100", "--timeout", "10s")
	return v
}

// end wants that every request was answered, and every connection is the first.
func (v *vigil) end(t *testing.T) {
	t.Helper()
	load, err := v.load()
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d requests, slowest %.0f ms", load.Requests, load.Latency["max"])
	v.stop()
	for url, all := range v.held {
		heard := <-all
		scheme, _, _ := strings.Cut(url, ":")
		for i, line := range heard {
			if line.Status != 200 || line.Reused != (i > 0) {
				t.Errorf("%s at %s: answer %d of %d is %+v; want 200 over the first connection", url, line.Time.Format(time.TimeOnly), i, len(heard), line)
			}
		}
		t.Logf("%s: %d answers over one connection", scheme, len(heard))
	}
}

// version is a backend that answers HTTP at 8080, TCP at 9000 and gRPC at 8079.
func version(name string) app {
	a := named(name)
	a.args[2] = "--identity=" + name
	a.labels = map[string]string{"shop": "store"}
	a.ports["grpc"] = 8079
	tcp := a.change
	a.change = func(spec *corev1.PodSpec) {
		tcp(spec)
		beside("grpc", "grpc-health", "--port=8079", "--identity="+name)(spec)
	}
	return a
}

// openStore runs two versions behind a split Service "store", a client that may
// call them and a stranger that may not, and returns what the client calls.
func openStore(t *testing.T, ns string) (client, stranger corev1.Pod, urls []string) {
	t.Helper()
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: store}
spec:
  selector: {shop: store}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}, {name: grpc, port: 8079}]
---
%[2]s---
%[3]s---
%[4]s`, ns, split(ns, 50), routes(ns, "everything", "{name: everything}"), tcpRoute(ns, "tcp", "9000"))
	for _, name := range []string{"store-v1", "store-v2"} {
		for _, rule := range []string{everything, "TCPRoute/tcp"} {
			apply(t, "%s", target(ns, name, rule, ns+"/client"))
		}
	}
	pods := all(t, ns, version("store-v1"), version("store-v2"), caller("client"), caller("stranger"))
	host := service(ns, "store")
	return pods[2], pods[3], []string{"http://" + host + ":8080/", "tcp://" + host + ":9000", "grpc://" + host + ":8079"}
}

// TestSwitchingANamespaceCutsNothing switches a namespace to permissive and back,
// and edits its policies and its split, under load and with connections held open.
func TestSwitchingANamespaceCutsNothing(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	client, stranger, urls := openStore(t, ns)
	v := keepVigil(t, client, urls...)
	for round := range 3 {
		annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
		for _, url := range urls {
			consecutive(t, stranger, url, "200", 3)
		}
		annotate(t, ns, "outrigger.dev/traffic-policy", "enforced")
		consecutive(t, stranger, urls[0], "403", 3)
		consecutive(t, stranger, urls[1], "error", 3)
		consecutive(t, stranger, urls[2], "403", 3)

		// Somebody else is let in, and refused again.
		other := strings.Replace(target(ns, "store-v1", everything, ns+"/stranger"), "name: store-v1-everything", "name: other", 1)
		apply(t, "%s", other)
		consecutive(t, stranger, urls[0], "200", 3)
		withdraw(t, other)
		consecutive(t, stranger, urls[0], "403", 3)
		// The rule that allows the client is written in another way.
		apply(t, "%s", routes(ns, "everything", []string{`{name: everything, pathRegex: "/.*"}`, `{name: everything, methods: ["*"]}, {name: more, pathRegex: /more}`, "{name: everything}"}[round]))
		// Shares move to one side and back.
		weight := []int{90, 10, 50}[round]
		apply(t, "%s", split(ns, weight))
		shares(t, client, urls[0], weight)
	}
	v.end(t)
}

// TestSwitchingTheMeshCutsNothing switches the whole mesh to permissive and back as
// an upgrade does, which replaces the control plane. It does not run beside others.
func TestSwitchingTheMeshCutsNothing(t *testing.T) {
	ns := namespace(t, "on", inMesh)
	client, stranger, urls := openStore(t, ns)
	t.Cleanup(func() {
		if t.Failed() {
			if _, err := cluster.Install(context.WithoutCancel(t.Context()), "trafficPolicy=enforced"); err != nil {
				t.Error(err)
			}
		}
	})
	v := keepVigil(t, client, urls...)
	for range 2 {
		for _, mode := range []string{"permissive", "enforced"} {
			began := time.Now()
			if _, err := cluster.Install(t.Context(), "trafficPolicy="+mode); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s after %.1f s", mode, time.Since(began).Seconds())
			want := map[string]string{"permissive": "200", "enforced": "403"}[mode]
			consecutive(t, stranger, urls[0], want, 5)
			consecutive(t, stranger, urls[2], want, 5)
			consecutive(t, stranger, urls[1], map[string]string{"permissive": "200", "enforced": "error"}[mode], 5)
		}
	}
	v.end(t)
}

// TestScalingToZeroAndBack wants 503 while there is no pod, success before and
// after, and never a request without an answer.
func TestScalingToZeroAndBack(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	server := httpEcho("server")
	server.args[1] = "--drain=3s"
	server.change = func(spec *corev1.PodSpec) { spec.TerminationGracePeriodSeconds = new(int64(20)) }
	server.deploy(t, ns, 2)
	pods := all(t, ns, caller("client"), caller("watcher"))
	client, watcher := pods[0], pods[1]
	allow(t, ns, "server", ns+"/client", ns+"/watcher")
	settled(t, t.Context(), ns, "server")
	url := echoURL(ns, "server", "/")
	consecutive(t, client, url, "200", 5)
	consecutive(t, watcher, url, "200", 5)
	stop := cluster.StartLoad(t.Context(), watcher, url, "--rate", "50", "--timeout", "10s")
	for range 2 {
		scale(t, t.Context(), ns, "server", 0)
		load := consecutive(t, client, url, "503", 20)
		for reason := range load.Refusals {
			t.Logf("without a pod: %s", reason)
		}
		scale(t, t.Context(), ns, "server", 2)
		consecutive(t, client, url, "200", 20)
		load, err := cluster.Load(t.Context(), client, url, "--requests=500", "--rate=200")
		if err == nil {
			err = load.All("200")
		}
		if err != nil {
			t.Errorf("when the pods are back: %v", err)
		}
	}
	load, err := stop()
	if err == nil && load.Codes["200"]+load.Codes["503"] != load.Requests {
		err = fmt.Errorf("%v %v; want 200 and 503 only", load.Codes, load.Errors)
	}
	if err != nil {
		t.Error(err)
	}
	t.Logf("of %d requests %d were answered 503", load.Requests, load.Codes["503"])
}
