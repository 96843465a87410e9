//go:build e2e

package e2e

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestUninstallLeavesNothingBehind removes the mesh under pods that use it, and
// installs it again. It does not run beside other tests.
func TestUninstallLeavesNothingBehind(t *testing.T) {
	ns := namespace(t, "on", inMesh)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	pods := all(t, ns, httpEcho("server"), caller("client"))
	url := echoURL(ns, "server", "/")
	answers(t, pods[1], url, 200)
	trust := client.ObjectKey{Namespace: ns, Name: mesh.TrustConfigMap}
	if err := cluster.Client.Get(t.Context(), trust, &corev1.ConfigMap{}); err != nil {
		t.Errorf("the mesh's roots are not in its namespace: %v", err)
	}

	text, err := cluster.CLI(t.Context(), "uninstall")
	if err != nil {
		t.Fatal(err)
	}
	// Whatever fails from here on, the tests that follow need the mesh.
	t.Cleanup(func() {
		if err := install(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	})
	if err := cluster.DeleteNamespaces(t.Context(), harness.SystemNamespace); err != nil {
		t.Fatal(err)
	}
	after, err := cluster.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range slices.Sorted(maps.Keys(after)) {
		if !before[object] && !strings.Contains(object, " "+prefix) && !strings.Contains(object, "/"+prefix) {
			t.Errorf("uninstall left %s behind:\n%s", object, text)
		}
	}
	if err := cluster.Client.Get(t.Context(), trust, &corev1.ConfigMap{}); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the mesh's roots are still in its namespace (%v)", err)
	}
	// Pods keep their proxies until they are restarted, and new ones get none.
	answersNow(t, pods[1], url, 200)
	pod, err := dryRun(t, app{name: "late", account: "default"}.podIn(ns))
	if err != nil || len(pod.Spec.InitContainers) != 0 {
		t.Errorf("a pod after uninstall: %v, %v; want it admitted as it is", pod, err)
	}
}

// TestInstallAgainChangesNothing runs install over a mesh that is there.
func TestInstallAgainChangesNothing(t *testing.T) {
	var ca corev1.Secret
	key := client.ObjectKey{Namespace: harness.SystemNamespace, Name: "outrigger-ca"}
	if err := cluster.Client.Get(t.Context(), key, &ca); err != nil {
		t.Fatal(err)
	}
	text, err := cluster.Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var again corev1.Secret
	if err := cluster.Client.Get(t.Context(), key, &again); err != nil {
		t.Fatal(err)
	}
	if ca.UID != again.UID || ca.ResourceVersion != again.ResourceVersion {
		t.Errorf("the CA was changed:\n%s", text)
	}
	// Values given before are kept.
	var pods corev1.PodList
	if err := cluster.Client.List(t.Context(), &pods, client.InNamespace(harness.SystemNamespace)); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if !slices.Contains(pod.Spec.Containers[0].Args, "--traffic-policy=enforced") {
			t.Errorf("pod %s has the arguments %v; want the mesh enforced still", pod.Name, pod.Spec.Containers[0].Args)
		}
	}
}
