//go:build integration

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
)

// applyPolicy creates the chart's admission policy and its binding.
func applyPolicy(t *testing.T, c client.Client, values map[string]any) {
	t.Helper()
	text, err := render("outrigger-system", values)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(object.GetKind(), "ValidatingAdmissionPolicy") {
			if err := c.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A candidate is a pod as it comes out of mutating admission.
func candidate(namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = namespace, name
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "x"}}
	if change != nil {
		change(pod)
	}
	return pod
}

func withSidecar(pod *corev1.Pod) {
	pod.Spec.InitContainers = []corev1.Container{{Name: "outrigger-proxy", Image: "x", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
}

func saying(word string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Annotations = map[string]string{"outrigger.dev/inject": word} }
}

// TestOptingOutOfAnEnforcedNamespace asks a real API server.
func TestOptingOutOfAnEnforcedNamespace(t *testing.T) {
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	scheme := newScheme()
	if err := admissionregistrationv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	applyPolicy(t, c, map[string]any{"enforcedNamespaces": map[string]any{"refuseOptOut": true}})
	on := map[string]string{"outrigger.dev/inject": "enabled"}
	enforced := map[string]string{"outrigger.dev/traffic-policy": "enforced"}
	osm := map[string]string{"openservicemesh.io/monitored-by": "osm"}
	for name, ns := range map[string]struct{ labels, annotations map[string]string }{
		"strict":      {on, enforced},
		"typo":        {on, map[string]string{"outrigger.dev/traffic-policy": "enforcd"}},
		"open":        {on, map[string]string{"outrigger.dev/traffic-policy": "permissive"}},
		"silent":      {on, nil}, // as the chart says: permissive
		"outside":     {nil, enforced},
		"ask":         {map[string]string{"outrigger.dev/inject": "disabled"}, enforced},
		"osm":         {osm, map[string]string{"outrigger.dev/traffic-policy": "enforced", "openservicemesh.io/sidecar-injection": "enabled"}},
		"osm-ask":     {osm, enforced},
		"osm-ignored": {map[string]string{"openservicemesh.io/monitored-by": "osm", "openservicemesh.io/ignore": ""}, enforced},
	} {
		namespace, account := &corev1.Namespace{}, &corev1.ServiceAccount{}
		namespace.Name, namespace.Labels, namespace.Annotations = name, ns.labels, ns.annotations
		account.Namespace, account.Name = name, "default"
		for _, object := range []client.Object{namespace, account} {
			if err := c.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A policy holds a moment after it was made.
	deadline, tick := time.After(time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		err := c.Create(t.Context(), candidate("strict", "probe", saying("disabled")), client.DryRunAll)
		if apierrors.IsInvalid(err) {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the policy never holds: %v", err)
		}
	}
	cases := []struct {
		reason    string
		namespace string
		change    func(*corev1.Pod)
		refused   string // part of the message; empty: let in
	}{
		{"an injected pod is what it is for", "strict", withSidecar, ""},
		{"this is the opt-out", "strict", saying("disabled"), "may not opt out"},
		{"case does not matter", "strict", saying("No"), "may not opt out"},
		{"OSM's word counts too", "strict", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"openservicemesh.io/sidecar-injection": "disabled"}
		}, "may not opt out"},
		{"so does a label", "strict", func(p *corev1.Pod) { p.Labels = map[string]string{"outrigger.dev/inject": "false"} }, "may not opt out"},
		{"the host's network is outside the mesh", "strict", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "host's network"},
		{"whatever the way, it has no sidecar", "strict", nil, "without a sidecar"},
		{"an init container of that name is none", "strict", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "outrigger-proxy", Image: "x"}}
		}, "without a sidecar"},
		{"a typing error is the strict case, as in the mesh", "typo", saying("disabled"), "may not opt out"},
		{"permissive namespaces are not meant", "open", saying("disabled"), ""},
		{"nor are those that follow a permissive chart", "silent", saying("disabled"), ""},
		{"nor those outside the mesh", "outside", saying("disabled"), ""},
		{"where pods must ask, one that does not is no opt-out", "ask", nil, ""},
		{"one that asks must get it", "ask", saying("enabled"), "without a sidecar"},
		{"OSM's namespaces are the same", "osm", saying("disabled"), "may not opt out"},
		{"with a sidecar for every pod", "osm", nil, "without a sidecar"},
		{"or for those that ask", "osm-ask", nil, ""},
		{"unless they are left alone", "osm-ignored", saying("disabled"), ""},
	}
	for n, tc := range cases {
		err := c.Create(t.Context(), candidate(tc.namespace, fmt.Sprintf("pod-%d", n), tc.change))
		switch {
		case tc.refused == "" && err != nil:
			t.Errorf("%s: %v", tc.reason, err)
		case tc.refused != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.refused)):
			t.Errorf("%s: got %v; want it refused with %q", tc.reason, err, tc.refused)
		}
	}
}
