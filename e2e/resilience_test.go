//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// steady are the flags of loads that look for a single lost request.
var steady = []string{"--rate", "200", "--timeout", "10s"}

// TestWithoutAControlPlaneTrafficGoesOn stops outriggerd. It does not run beside
// other tests.
func TestWithoutAControlPlaneTrafficGoesOn(t *testing.T) {
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, pods[1], url, 200)

	t.Cleanup(func() { controlPlaneBack(t, context.WithoutCancel(t.Context()), ns) })
	scale(t, t.Context(), harness.SystemNamespace, "outriggerd", 0)
	load, err := cluster.Load(t.Context(), pods[1], url, "--requests", "2000", "--rate", "400", "--keep-alive=false")
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Errorf("without a control plane: %v", err)
	}
	answersNow(t, pods[1], echoURL(ns, "server", "/"), 200)

	// New pods of the mesh are refused, rather than started without a sidecar.
	if _, err := dryRun(t, app{name: "late", account: "default"}.podIn(ns)); err == nil {
		t.Error("a pod of the mesh was admitted without a sidecar")
	} else {
		t.Logf("a pod of the mesh is refused: %v", err)
	}
	// Whoever has nothing to do with the mesh does not notice.
	optedOut := caller("opted-out")
	optedOut.labels = map[string]string{"outrigger.dev/inject": "disabled"}
	optedOut.run(t, ns)
	caller("stranger").run(t, outside)

	controlPlaneBack(t, t.Context(), ns)
	late := caller("late")
	late.account = "client"
	pod := late.run(t, ns)
	if !isInjected(&pod) {
		t.Error("a pod was not injected after the control plane came back")
	}
	answers(t, pod, url, 200)
}

func TestARestartOfTheControlPlaneLosesNoRequest(t *testing.T) {
	ns := namespace(t, "on", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, pods[1], url, 200)

	stop := cluster.StartLoad(t.Context(), pods[1], url, steady...)
	restart(t, harness.SystemNamespace, "outriggerd")
	// A change that comes through says that the proxies have found the new pods.
	allow(t, ns, "server", ns+"/client", ns+"/late")
	late := caller("late").run(t, ns)
	answers(t, late, url, 200)
	load, err := stop()
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d requests, slowest %.0f ms", load.Requests, load.Latency["max"])
}

// TestARollingUpdateLosesNoRequest replaces and removes pods of a server under load.
func TestARollingUpdateLosesNoRequest(t *testing.T) {
	ns := namespace(t, "on", inMesh)
	server := httpEcho("server")
	server.args = []string{"http-echo", "--drain=3s"}
	pod := server.podIn(ns)
	deployment := &appsv1.Deployment{}
	deployment.Namespace, deployment.Name = ns, "server"
	deployment.Spec.Replicas = new(int32(3))
	deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: pod.Labels}
	deployment.Spec.Template.Labels = pod.Labels
	deployment.Spec.Template.Spec = pod.Spec
	deployment.Spec.Template.Spec.TerminationGracePeriodSeconds = new(int64(20))
	apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: %[1]s, name: server}
---
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8080}]
`, ns)
	if err := cluster.Client.Create(t.Context(), deployment); err != nil {
		t.Fatal(err)
	}
	from := caller("client").run(t, ns)
	if _, err := cluster.Ready(t.Context(), ns, "app=server", 3); err != nil {
		t.Fatal(err)
	}
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, from, url, 200)

	for name, change := range map[string]func(){
		"rolling update": func() { restart(t, ns, "server") },
		"fewer and more": func() {
			scale(t, t.Context(), ns, "server", 1)
			scale(t, t.Context(), ns, "server", 3)
		},
	} {
		stop := cluster.StartLoad(t.Context(), from, url, steady...)
		change()
		load, err := stop()
		if err == nil {
			err = load.All("200")
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %d requests, slowest %.0f ms", name, load.Requests, load.Latency["max"])
	}
}

// TestAnAppMayCloseIdleConnections has a server that closes connections about when
// the next request comes over them, as servers do that are told to stop. It runs alone:
// a pod that is not ready for a moment, because the machine is busy, would look the same.
func TestAnAppMayCloseIdleConnections(t *testing.T) {
	ns := namespace(t, "on", inMesh)
	server := httpEcho("server")
	server.args = append(server.args, "--idle-timeout=40ms")
	pods := all(t, ns, server, caller("client"))
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, pods[1], url, 200)
	load, err := cluster.Load(t.Context(), pods[1], url, "--requests", "2000", "--rate", "200")
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Error(err)
	}
}

// scale sets the replicas of a Deployment and waits until as many pods are there,
// and all of them ready.
func scale(t *testing.T, ctx context.Context, namespace, name string, replicas int32) { //nolint:revive // t comes first in tests
	t.Helper()
	patchDeployment(t, ctx, namespace, name, map[string]any{"spec": map[string]any{"replicas": replicas}})
	settled(t, ctx, namespace, name)
}

// controlPlaneBack starts both replicas and waits until the API server reaches
// them for a pod of a namespace in the mesh: kube-proxy leads there a moment after
// they are ready.
func controlPlaneBack(t *testing.T, ctx context.Context, ns string) { //nolint:revive // t comes first in tests
	t.Helper()
	scale(t, ctx, harness.SystemNamespace, "outriggerd", 2)
	err := harness.Eventually(ctx, patience, func(ctx context.Context) error {
		pod := app{name: "asks-whether-it-is-back", account: "default"}.podIn(ns)
		_, err := cluster.Set.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// restart does what `kubectl rollout restart` does, and waits until it is done.
func restart(t *testing.T, namespace, name string) {
	t.Helper()
	patchDeployment(t, t.Context(), namespace, name, map[string]any{"spec": map[string]any{"template": map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{"e2e/restarted": time.Now().Format(time.RFC3339Nano)}},
	}}})
	settled(t, t.Context(), namespace, name)
}

func patchDeployment(t *testing.T, ctx context.Context, namespace, name string, change any) { //nolint:revive // t comes first in tests
	t.Helper()
	patch, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	deployment := &appsv1.Deployment{}
	deployment.Namespace, deployment.Name = namespace, name
	if err := cluster.Client.Patch(ctx, deployment, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		t.Fatal(err)
	}
}

// settled waits until a Deployment's pods are those that it wants, and no others
// are left.
func settled(t *testing.T, ctx context.Context, namespace, name string) { //nolint:revive // t comes first in tests
	t.Helper()
	err := harness.Eventually(ctx, 2*patience, func(ctx context.Context) error {
		deployment := &appsv1.Deployment{}
		if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, deployment); err != nil {
			return err
		}
		var pods corev1.PodList
		if err := cluster.Client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(deployment.Spec.Selector.MatchLabels)); err != nil {
			return err
		}
		want, status := *deployment.Spec.Replicas, deployment.Status
		if status.ObservedGeneration < deployment.Generation || status.UpdatedReplicas != want || status.ReadyReplicas != want || len(pods.Items) != int(want) {
			return fmt.Errorf("%s/%s: %d pods, %d up to date, %d ready; %d wanted", namespace, name, len(pods.Items), status.UpdatedReplicas, status.ReadyReplicas, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
