package annotation

import (
	"slices"
	"strings"
)

// Who is in the mesh, and who gets a sidecar.
const (
	// Inject is a label on a namespace, and a label or annotation on a pod. On a
	// namespace either word makes it part of the mesh; "disabled" means that its
	// pods get a sidecar only if they ask.
	Inject = "outrigger.dev/inject"

	// OSMMonitoredBy is OSM's label that puts a namespace into the mesh that its
	// value names. It does not yet give its pods sidecars; see OSMInject.
	OSMMonitoredBy = "openservicemesh.io/monitored-by"
	// OSMInject is OSM's annotation for Inject, on a pod or on a namespace that
	// OSMMonitoredBy put into the mesh.
	OSMInject = "openservicemesh.io/sidecar-injection"
	// OSMIgnore is a namespace label whose presence keeps the mesh out, whatever
	// else the namespace says.
	OSMIgnore = "openservicemesh.io/ignore"
	// ControlPlane is a namespace label whose presence makes OSMMonitoredBy void,
	// as in OSM.
	ControlPlane = "control-plane"
)

func injectSubject() subject {
	valid := func(value string) bool { _, ok := ParseWord(value); return ok || value == "" }
	return subject{
		title: "Join and leave the mesh",
		text: "The first that is there counts: a pod's label, its annotation, OSM's annotation on it, then what its namespace says. Case does not matter. " +
			"System namespaces, pods on the host's network, mirror and Windows pods and those of another mesh never get a sidecar.",
		keys: []Key{
			{
				Name: Inject, On: Namespace, As: AsLabel,
				Type: "word", Allowed: Words, Default: "not in the mesh", Valid: valid,
				Effect:    "either word puts the namespace into the mesh; `enabled` gives its pods sidecars, `disabled` gives one to pods that ask",
				Otherwise: "its pods are refused",
			},
			{
				Name: Inject, OSM: OSMInject, On: Pod, As: AsEither,
				Type: "word", Allowed: Words, Default: "as the namespace says", Valid: valid,
				Effect:    "whether the pod gets a sidecar. OSM's name is an annotation",
				Otherwise: "the pod is refused",
			},
			{
				Name: OSMMonitoredBy, On: Namespace, As: AsLabel,
				Type: "name", Allowed: "the chart's `osmMeshName`", Default: "none", Valid: always,
				Effect:    "puts the namespace into the mesh; its pods get sidecars if the annotation below says so. Void beside our label, or a label `control-plane`",
				Otherwise: "it is another mesh's namespace",
			},
			{
				Name: OSMInject, On: Namespace,
				Type: "word", Allowed: Words, Default: "disabled", Valid: valid,
				Effect:    "whether pods of a namespace that OSM's label put into the mesh get sidecars",
				Otherwise: "its pods are refused",
			},
			{
				Name: OSMIgnore, On: Namespace, As: AsLabel,
				Type: "presence", Allowed: "any value", Default: "absent", Valid: always,
				Effect:    "keeps the mesh out, whatever else the namespace says",
				Otherwise: "cannot be",
			},
		},
	}
}

func always(string) bool { return true }

// A Word is what a namespace or a pod says about injection.
type Word int

// The words. Saying nothing is the zero Word.
const (
	Unsaid Word = iota
	Enabled
	Disabled
)

// Words are the allowed values of Inject and OSMInject, in any case, as an
// error says them.
const Words = "enabled, yes or true, or disabled, no or false"

// ParseWord reads the value of Inject or OSMInject. It reports false for a
// value outside [Words]; the empty value is one.
func ParseWord(value string) (Word, bool) {
	switch strings.ToLower(value) {
	case "enabled", "yes", "true":
		return Enabled, true
	case "disabled", "no", "false":
		return Disabled, true
	default:
		return Unsaid, false
	}
}

// PodWord returns a pod's own word. The label wins over the annotation, and ours
// over OSM's: the first that is there counts, and when it is empty the pod has
// said nothing. The API server reads a pod the same way, in the conditions of
// package webhook.
func PodWord(labels, annotations map[string]string) (Word, error) {
	object, key, value := "pod label", Inject, ""
	if v, ok := labels[Inject]; ok {
		value = v
	} else if v, ok := annotations[Inject]; ok {
		object, value = "pod annotation", v
	} else if v, ok := annotations[OSMInject]; ok {
		object, key, value = "pod annotation", OSMInject, v
	}
	if value == "" {
		return Unsaid, nil
	}
	return parseWord(object, key, value)
}

// NamespaceWord returns the word of a namespace that the label [Inject] put into
// the mesh. A namespace without it has said nothing.
func NamespaceWord(labels map[string]string) (Word, error) {
	value, ok := labels[Inject]
	if !ok {
		return Unsaid, nil
	}
	return parseWord("namespace label", Inject, value)
}

// OSMNamespaceWord returns the word of a namespace that [OSMMonitoredBy] put into
// the mesh. An empty annotation is the same as none.
func OSMNamespaceWord(annotations map[string]string) (Word, error) {
	value := annotations[OSMInject]
	if value == "" {
		return Unsaid, nil
	}
	return parseWord("namespace annotation", OSMInject, value)
}

func parseWord(object, key, value string) (Word, error) {
	word, ok := ParseWord(value)
	if !ok {
		return Unsaid, &Error{Object: object, Key: key, Value: value, Allowed: Words}
	}
	return word, nil
}

// InMesh reports whether a namespace with these labels is part of the mesh.
// osmMesh is the OSM mesh name whose namespaces are ours too, or empty for none.
// A value of [Inject] that means nothing still counts: its pods are denied with
// a reason, which a namespace outside the mesh could not do.
//
// InMesh does not know the namespace's name: see [IsSystem].
func InMesh(labels map[string]string, osmMesh string) bool {
	if has(labels, OSMIgnore) {
		return false
	}
	return has(labels, Inject) || ByOSM(labels, osmMesh)
}

// ByOSM reports whether a namespace is part of the mesh by OSM's label, so that
// [OSMNamespaceWord] is its word and not [NamespaceWord].
func ByOSM(labels map[string]string, osmMesh string) bool {
	by := labels[OSMMonitoredBy]
	return by != "" && by == osmMesh && !has(labels, Inject) && !has(labels, ControlPlane) && !has(labels, OSMIgnore)
}

// SystemNamespaces returns the namespaces that are never part of the mesh: those
// of Kubernetes, and own, the mesh's own.
func SystemNamespaces(own string) []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", own}
}

// IsSystem reports whether a namespace of this name is never part of the mesh.
func IsSystem(name, own string) bool {
	return slices.Contains(SystemNamespaces(own), name)
}

func has(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}
