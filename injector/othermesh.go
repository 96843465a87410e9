package injector

import (
	"fmt"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// otherMesh says which other mesh the pod belongs to, by its sidecar or by what
// makes its injector add one, and how that was seen. Two redirections in one pod
// never work. Empty means none.
func otherMesh(r Request, s Settings) string {
	for _, c := range slices.Concat(r.Pod.Spec.Containers, r.Pod.Spec.InitContainers) {
		switch c.Name {
		case "istio-proxy":
			return "Istio (container istio-proxy)"
		case "linkerd-proxy":
			return "Linkerd (container linkerd-proxy)"
		case "osm-init":
			return "Open Service Mesh (container osm-init)"
		}
	}
	for _, asks := range []func(Request, Settings) string{istio, linkerd, osm} {
		if seen := asks(r, s); seen != "" {
			return seen
		}
	}
	return ""
}

// istio looks for sidecars by namespace, revision and pod label, and for the
// ambient mode, which redirects as well.
func istio(r Request, _ Settings) string {
	pod, ns := r.Pod, r.Namespace
	for _, key := range []string{"sidecar.istio.io/status", "ambient.istio.io/redirection"} {
		if _, ok := pod.Annotations[key]; ok {
			return fmt.Sprintf("Istio (annotation %s)", key)
		}
	}
	word, ok := pod.Labels["sidecar.istio.io/inject"]
	if !ok {
		word = pod.Annotations["sidecar.istio.io/inject"]
	}
	if word == "true" {
		return "Istio (sidecar.istio.io/inject: true)"
	}
	if word != "false" {
		if ns.Labels["istio-injection"] == "enabled" {
			return "Istio (namespace label istio-injection: enabled)"
		}
		if rev := pod.Labels["istio.io/rev"]; rev != "" {
			return fmt.Sprintf("Istio (label istio.io/rev: %s)", rev)
		}
		if rev := ns.Labels["istio.io/rev"]; rev != "" && ns.Labels["istio-injection"] == "" {
			return fmt.Sprintf("Istio (namespace label istio.io/rev: %s)", rev)
		}
	}
	mode, ok := pod.Labels["istio.io/dataplane-mode"]
	if !ok {
		mode = ns.Labels["istio.io/dataplane-mode"]
	}
	if mode == "ambient" {
		return "Istio (label istio.io/dataplane-mode: ambient)"
	}
	return ""
}

func linkerd(r Request, _ Settings) string {
	word, ok := r.Pod.Annotations["linkerd.io/inject"]
	if !ok {
		word = r.Namespace.Annotations["linkerd.io/inject"]
	}
	if word == "enabled" || word == "ingress" {
		return fmt.Sprintf("Linkerd (annotation linkerd.io/inject: %s)", word)
	}
	return ""
}

// osm looks for a sidecar that a live OSM has added, and for a namespace of an
// OSM mesh that is not ours and that injects.
func osm(r Request, s Settings) string {
	if _, ok := r.Pod.Labels["osm-proxy-uuid"]; ok {
		return "Open Service Mesh (label osm-proxy-uuid)"
	}
	by := r.Namespace.Labels[annotation.OSMMonitoredBy]
	if by == "" || by == s.OSMMesh {
		return ""
	}
	text := r.Pod.Annotations[annotation.OSMInject]
	if text == "" {
		text = r.Namespace.Annotations[annotation.OSMInject]
	}
	if word, _ := annotation.ParseWord(text); word == annotation.Enabled {
		return fmt.Sprintf("Open Service Mesh %s (%s: %s)", by, annotation.OSMInject, strings.ToLower(text))
	}
	return ""
}
