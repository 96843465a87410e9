package injector

import (
	"errors"
	"fmt"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// An Outcome is what happens to a pod.
type Outcome int

// The outcomes. The zero Outcome leaves the pod as it is.
const (
	Skipped  Outcome = iota // admitted as it is
	Injected                // admitted with a sidecar
	Denied                  // not admitted, because of a user's mistake
)

// String returns "skipped", "injected" or "denied".
func (o Outcome) String() string {
	switch o {
	case Injected:
		return "injected"
	case Denied:
		return "denied"
	default:
		return "skipped"
	}
}

// A Reason is why, in one word that never changes: it is a metric's label, and
// people search for it.
type Reason string

// The reasons, in the order of the rules.
const (
	SystemNamespace   Reason = "system-namespace"
	HostNetwork       Reason = "host-network"
	MirrorPod         Reason = "mirror-pod"
	Windows           Reason = "windows"
	AnotherMesh       Reason = "another-mesh"
	OutsideMesh       Reason = "namespace-not-in-mesh"
	InvalidValue      Reason = "invalid-value"
	PodDisabled       Reason = "pod-disabled"
	PodEnabled        Reason = "pod-enabled"
	NamespaceEnabled  Reason = "namespace-enabled"
	NamespaceDisabled Reason = "namespace-disabled"
	NotEnabled        Reason = "not-enabled"
	// Conflict is Patch's: the pod has something that belongs to the mesh.
	Conflict Reason = "conflict"
)

// A Verdict says what happens to a pod and why.
type Verdict struct {
	Outcome Outcome
	Reason  Reason
	// Message says it to a person, in one sentence.
	Message string
	// Surprising is set when somebody asked for a sidecar that the pod does not
	// get. The webhook warns then.
	Surprising bool
}

// A Namespace is what a decision needs of one. It may be older than what the API
// server knows; see [Match].
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// A Match is which of the webhooks' namespace selectors a namespace matched. When
// the API server has decided that, its word counts and not the Namespace's
// labels, which come from a cache that may be behind.
type Match int

// The matches. The zero Match is a namespace outside the mesh.
const (
	NoMatch  Match = iota
	MatchOn        // outrigger.dev/inject with any value but the next three
	MatchAsk       // outrigger.dev/inject is disabled, no or false
	MatchOSM       // OSM's label, and none of ours
)

// MatchNamespace returns what the API server would find for ns. Selectors compare
// exactly, so "Disabled" is MatchOn; Decide gives it its meaning.
func MatchNamespace(ns Namespace, s Settings) Match {
	switch {
	case annotation.IsSystem(ns.Name, s.SystemNamespace), !annotation.InMesh(ns.Labels, s.OSMMesh):
		return NoMatch
	case annotation.ByOSM(ns.Labels, s.OSMMesh):
		return MatchOSM
	case exactlyDisabled(ns.Labels[annotation.Inject]):
		return MatchAsk
	default:
		return MatchOn
	}
}

func exactlyDisabled(value string) bool {
	return value == "disabled" || value == "no" || value == "false"
}

// A Request is one pod about to be created. Decide and Patch do not change it.
type Request struct {
	Namespace Namespace
	Match     Match
	Pod       *corev1.Pod
}

// Inject decides about a pod and returns the operations that add its sidecar.
// There are none unless the Outcome is Injected, nor when the pod is already as
// it would be made.
func Inject(r Request, s Settings) (Verdict, []jsonpatch.Operation) {
	verdict := Decide(r, s)
	if verdict.Outcome != Injected {
		return verdict, nil
	}
	ops, err := Patch(r.Pod, s)
	if err == nil {
		return verdict, ops
	}
	reason := Conflict
	var value *annotation.Error
	if errors.As(err, &value) {
		reason = InvalidValue
	}
	return denied(reason, err), nil
}

// Decide applies the rules in order and returns the first that settles the
// matter. What a pod itself says comes late: no word makes a sidecar work on the
// host's network.
func Decide(r Request, s Settings) Verdict {
	pod, ns := r.Pod, r.Namespace
	word, wordErr := annotation.PodWord(pod.Labels, pod.Annotations)
	nsWord, nsErr := namespaceWord(r)
	asked := word == annotation.Enabled || wordErr != nil
	wanted := asked || word == annotation.Unsaid && nsWord == annotation.Enabled

	// What cannot be injected, whoever asks.
	if annotation.IsSystem(ns.Name, s.SystemNamespace) {
		return skipped(SystemNamespace, asked, "pods of the system namespace %s get no sidecar", ns.Name)
	}
	if pod.Spec.HostNetwork {
		return skipped(HostNetwork, asked, "a pod on the host's network (hostNetwork: true) gets no sidecar: it would redirect the node's traffic")
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return skipped(MirrorPod, false, "a mirror of a static pod gets no sidecar: the kubelet runs the pod from a file")
	}
	if windows(pod) {
		return skipped(Windows, wanted, "a Windows pod gets no sidecar: the mesh runs on Linux only")
	}
	if other := otherMesh(r, s); other != "" {
		return skipped(AnotherMesh, wanted, "the pod gets no sidecar of this mesh, because it has another's: %s", other)
	}
	if r.Match == NoMatch {
		return skipped(OutsideMesh, asked, "namespace %s is not part of the mesh; the label %s=enabled on it gives its pods sidecars, %s=disabled lets pods ask for one", ns.Name, annotation.Inject, annotation.Inject)
	}

	switch {
	case wordErr != nil:
		return denied(InvalidValue, wordErr)
	case word == annotation.Enabled:
		return Verdict{Outcome: Injected, Reason: PodEnabled, Message: "the pod asks for a sidecar"}
	case word == annotation.Disabled:
		return skipped(PodDisabled, false, "the pod wants no sidecar")
	case nsErr != nil:
		return denied(InvalidValue, fmt.Errorf("namespace %s: %w", ns.Name, nsErr))
	case nsWord == annotation.Enabled:
		return Verdict{Outcome: Injected, Reason: NamespaceEnabled, Message: fmt.Sprintf("namespace %s gives its pods sidecars", ns.Name)}
	case nsWord == annotation.Disabled:
		return skipped(NamespaceDisabled, false, "namespace %s gives sidecars only to pods that ask with %s=enabled", ns.Name, annotation.Inject)
	default:
		return skipped(NotEnabled, false, "neither the pod nor namespace %s asks for a sidecar with %s", ns.Name, annotation.OSMInject)
	}
}

// namespaceWord returns what the namespace says, where labels that contradict the
// match are taken as out of date.
func namespaceWord(r Request) (annotation.Word, error) {
	switch r.Match {
	case MatchOn:
		value, ok := r.Namespace.Labels[annotation.Inject]
		if !ok || exactlyDisabled(value) {
			return annotation.Enabled, nil
		}
		return annotation.NamespaceWord(r.Namespace.Labels)
	case MatchAsk:
		return annotation.Disabled, nil
	case MatchOSM:
		return annotation.OSMNamespaceWord(r.Namespace.Annotations)
	default:
		return annotation.Unsaid, nil
	}
}

func skipped(reason Reason, surprising bool, format string, args ...any) Verdict {
	return Verdict{Reason: reason, Surprising: surprising, Message: fmt.Sprintf(format, args...)}
}

func denied(reason Reason, err error) Verdict {
	return Verdict{Outcome: Denied, Reason: reason, Message: err.Error(), Surprising: true}
}

func windows(pod *corev1.Pod) bool {
	return pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows ||
		pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows)
}
