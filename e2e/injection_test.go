//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestPodsOfALabelledNamespaceGetASidecar(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	pod := caller("app").run(t, ns)
	if !isInjected(&pod) || len(pod.Spec.InitContainers) != 2 {
		t.Fatalf("init containers are %v; want the mesh's two", pod.Spec.InitContainers)
	}
	if got := pod.Annotations["kubectl.kubernetes.io/default-container"]; got != "app" {
		t.Errorf("kubectl's default container is %q, want app", got)
	}
	proxy := pod.Spec.InitContainers[1].SecurityContext
	if *proxy.RunAsUser != 1500 || !*proxy.RunAsNonRoot || !*proxy.ReadOnlyRootFilesystem || *proxy.AllowPrivilegeEscalation ||
		len(proxy.Capabilities.Add) != 0 || len(proxy.Capabilities.Drop) != 1 || proxy.Capabilities.Drop[0] != "ALL" {
		t.Errorf("the proxy's security context is %v; want user 1500, read-only root, no capabilities", proxy)
	}
	init := pod.Spec.InitContainers[0].SecurityContext
	if !*init.ReadOnlyRootFilesystem || len(init.Capabilities.Add) != 1 || init.Capabilities.Add[0] != "NET_ADMIN" {
		t.Errorf("the init container's security context is %v; want a read-only root and NET_ADMIN only", init)
	}
}

// TestWhoGetsASidecar asks the API server about pods without making them.
func TestWhoGetsASidecar(t *testing.T) {
	t.Parallel()
	osm := map[string]string{"openservicemesh.io/monitored-by": "osm"}
	namespaces := map[string]string{
		"on":      namespace(t, "on", inMesh),
		"asks":    namespace(t, "asks", whoAsks),
		"outside": namespace(t, "outside", outsideMesh),
		"osm":     namespace(t, "osm", osm),
		"osm-on":  namespace(t, "osm-on", osm),
		"ignored": namespace(t, "ignored", map[string]string{"outrigger.dev/inject": "enabled", "openservicemesh.io/ignore": ""}),
	}
	annotate(t, namespaces["osm-on"], "openservicemesh.io/sidecar-injection", "enabled")
	// What a namespace's annotations say, outriggerd learns by watching.
	eventually(t, func(context.Context) error {
		pod, err := dryRun(t, app{name: "first", account: "default"}.podIn(namespaces["osm-on"]))
		if err == nil && !isInjected(pod) {
			err = fmt.Errorf("OSM's annotation on the namespace is not heeded")
		}
		return err
	})
	ours, theirs := "outrigger.dev/inject", "openservicemesh.io/sidecar-injection"
	cases := map[string]struct {
		reason              string
		in                  string
		labels, annotations map[string]string
		want                bool
	}{
		"namespace on":              {reason: "one label is all it takes", in: "on", want: true},
		"pod opts out by label":     {reason: "the pod has the last word", in: "on", labels: map[string]string{ours: "disabled"}},
		"pod opts out by any case":  {reason: "case never matters", in: "on", annotations: map[string]string{ours: "No"}},
		"pod opts out OSM's way":    {reason: "OSM's annotation is heeded in our namespaces", in: "on", annotations: map[string]string{theirs: "disabled"}},
		"namespace lets pods ask":   {reason: "disabled means only those that ask", in: "asks"},
		"pod opts in by label":      {reason: "it asks", in: "asks", labels: map[string]string{ours: "enabled"}, want: true},
		"pod opts in by annotation": {reason: "it asks", in: "asks", annotations: map[string]string{ours: "true"}, want: true},
		"outside":                   {reason: "nobody joins by accident", in: "outside"},
		"outside, pod asks":         {reason: "joining the mesh is the namespace's decision", in: "outside", labels: map[string]string{ours: "enabled"}},
		"OSM's namespace":           {reason: "monitored alone gives no sidecars, as in OSM", in: "osm"},
		"OSM's pod opts in":         {reason: "as in OSM", in: "osm", annotations: map[string]string{theirs: "enabled"}, want: true},
		"OSM's namespace on":        {reason: "label and annotation, as in OSM", in: "osm-on", want: true},
		"OSM's pod opts out":        {reason: "as in OSM", in: "osm-on", annotations: map[string]string{theirs: "no"}},
		"ignored namespace":         {reason: "ignore beats everything, as in OSM", in: "ignored"},
	}
	for name, tc := range cases {
		pod := app{name: "pod", account: "default", labels: tc.labels, annotations: tc.annotations}.podIn(namespaces[tc.in])
		got, err := dryRun(t, pod)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case isInjected(got) != tc.want:
			t.Errorf("%s: injected is %t, want %t: %s", name, isInjected(got), tc.want, tc.reason)
		case !tc.want && len(got.Spec.InitContainers) != 0:
			t.Errorf("%s: the pod got init containers: %v", name, got.Spec.InitContainers)
		}
	}
}

func TestWrongValuesAreDeniedWithAReason(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	cases := map[string]struct {
		annotations map[string]string
		change      func(*corev1.PodSpec)
		want        []string
	}{
		"word": {
			annotations: map[string]string{"outrigger.dev/inject": "perhaps"},
			want:        []string{"outrigger.dev/inject", `"perhaps"`, "enabled, yes or true, or disabled, no or false"},
		},
		"OSM's word": {
			annotations: map[string]string{"openservicemesh.io/sidecar-injection": "enable"},
			want:        []string{"openservicemesh.io/sidecar-injection", `"enable"`, "enabled, yes or true"},
		},
		"log level": {
			annotations: map[string]string{"outrigger.dev/proxy-log-level": "loud"},
			want:        []string{"outrigger.dev/proxy-log-level", `"loud"`, "trace, debug, info"},
		},
		"port": {
			annotations: map[string]string{"outrigger.dev/inbound-port-exclusion-list": "80,http"},
			want:        []string{"outrigger.dev/inbound-port-exclusion-list", `"80,http"`, "ports from 1 to 65535"},
		},
		"the proxy's user": {
			change: func(spec *corev1.PodSpec) {
				spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1500))}
			},
			want: []string{"container pod", "1500"},
		},
		"the proxy's name": {
			change: func(spec *corev1.PodSpec) { spec.Containers[0].Name = "outrigger-proxy" },
			want:   []string{"container outrigger-proxy", "belong to the mesh"},
		},
	}
	for name, tc := range cases {
		_, err := dryRun(t, app{name: "pod", account: "default", annotations: tc.annotations, change: tc.change}.podIn(ns))
		if err == nil {
			t.Errorf("%s: the pod was admitted", name)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the denial does not say %s: %v", name, want, err)
			}
		}
	}
}

// warnings keeps the warnings that come with the API server's answers.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func TestWhoWantedASidecarIsWarned(t *testing.T) {
	t.Parallel()
	namespaces := map[string]string{"on": namespace(t, "on", inMesh), "outside": namespace(t, "outside", outsideMesh)}
	asks := map[string]string{"outrigger.dev/inject": "enabled"}
	cases := map[string]struct {
		reason string
		in     string
		labels map[string]string
		change func(*corev1.PodSpec)
		want   string // part of the warning; none where empty
	}{
		"istio": {
			reason: "two redirections in one pod never work", in: "on",
			labels: map[string]string{"sidecar.istio.io/inject": "true"}, want: "Istio",
		},
		"host network": {
			reason: "a pod that does not ask is left alone in silence", in: "on",
			change: func(spec *corev1.PodSpec) { spec.HostNetwork = true },
		},
		"host network, asked for": {
			reason: "somebody asked for what will not happen", in: "on", labels: asks,
			change: func(spec *corev1.PodSpec) { spec.HostNetwork = true }, want: "hostNetwork",
		},
		"outside, asked for": {
			reason: "the warning names the label to set", in: "outside", labels: asks, want: "outrigger.dev/inject=disabled",
		},
		"outside": {reason: "the mesh has nothing to say", in: "outside"},
	}
	for name, tc := range cases {
		heard := &warnings{}
		config := rest.CopyConfig(cluster.Config)
		config.WarningHandler = heard
		set, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		pod := app{name: "pod", account: "default", labels: tc.labels, change: tc.change}.podIn(namespaces[tc.in])
		got, err := set.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if isInjected(got) {
			t.Errorf("%s: the pod was injected", name)
		}
		if text := strings.Join(heard.texts, "\n"); (tc.want == "") != (text == "") || !strings.Contains(text, tc.want) {
			t.Errorf("%s: warned %q, want %q: %s", name, text, tc.want, tc.reason)
		}
	}
}

// TestACopyOfAnInjectedPodComesUp does what `kubectl debug --copy-to` does: the
// copy has the init containers, but no label, annotation or probe.
func TestACopyOfAnInjectedPodComesUp(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	original := httpEcho("app").run(t, ns)
	copied := &corev1.Pod{Spec: *original.Spec.DeepCopy()}
	copied.Namespace, copied.Name = ns, "copy"
	copied.Labels = map[string]string{"copy": "yes"} // to find it by
	copied.Spec.NodeName = ""
	for i := range copied.Spec.Containers {
		copied.Spec.Containers[i].ReadinessProbe = nil
	}
	if err := cluster.Client.Create(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	running := ready(t, ns, "copy=yes")
	if !isInjected(&running) || len(running.Spec.InitContainers) != 2 {
		t.Errorf("the copy's init containers are %v; want the mesh's two", running.Spec.InitContainers)
	}
	allow(t, ns, "app", ns+"/app")
	answers(t, running, echoURL(ns, "app", "/"), 200)
}
