//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestProxiesCanBeLookedAt asks Envoy through the command line, and for what must
// not be done.
func TestProxiesCanBeLookedAt(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	pod := caller("app").run(t, ns)
	stats, err := cluster.CLI(t.Context(), "proxy", "get", "stats?filter=server.live", "app", "-n", ns)
	if err != nil || !strings.Contains(stats, "server.live: 1") {
		t.Errorf("proxy get stats: %q, %v", stats, err)
	}
	for _, request := range [][]string{{"POST", "/quitquitquit"}, {"GET", "/quitquitquit"}, {"POST", "/drain_listeners"}, {"POST", "/runtime_modify"}} {
		result, err := cluster.Exec(t.Context(), pod, "outrigger-proxy", "/outrigger-agent", "admin", request[0], request[1])
		if err != nil || result.Code == 0 {
			t.Errorf("%v was not refused: %d %s (%v)", request, result.Code, result.Stdout, err)
		}
	}
	if text, err := cluster.CLI(t.Context(), "proxy", "set", "quitquitquit", "app", "-n", ns); err == nil {
		t.Errorf("proxy set quitquitquit was not refused: %s", text)
	}
	// The proxy runs still, and the application cannot reach its admin interface.
	if live, err := cluster.Stat(t.Context(), pod, "server.live"); err != nil || live != 1 {
		t.Errorf("server.live is %d (%v)", live, err)
	}
	for _, port := range []string{"15000", "15001", "15003"} {
		closed(t, pod, "127.0.0.1:"+port, "--send", "GET /stats HTTP/1.0\r\n\r\n", "--timeout", "1s")
	}
}

// TestInjectingOfflineGivesAWorkingPod adds the sidecar to YAML and applies that
// to a namespace whose pods get one only if they ask.
func TestInjectingOfflineGivesAWorkingPod(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "asks", whoAsks)
	httpEcho("server").create(t, ns)
	template := caller("client").podIn(ns)
	deployment := &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}}
	deployment.Namespace, deployment.Name = ns, "client"
	deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: template.Labels}
	deployment.Spec.Template.Labels, deployment.Spec.Template.Spec = template.Labels, template.Spec
	deployment.Spec.Template.Spec.ServiceAccountName = "server"
	text, err := json.Marshal(deployment)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "deployment.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	injected, err := cluster.CLI(t.Context(), append([]string{"inject", "-f", file}, cluster.ImageFlags()...)...)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, "%s", injected)
	pod := ready(t, ns, "app=client")
	if !isInjected(&pod) || len(pod.Spec.InitContainers) != 2 {
		t.Errorf("init containers are %v; want the mesh's two", pod.Spec.InitContainers)
	}
	// Its proxy serves it.
	apiServerAnswers(t, pod)
	if live, err := cluster.Stat(t.Context(), pod, "server.live"); err != nil || live != 1 {
		t.Errorf("server.live is %d (%v)", live, err)
	}
}
