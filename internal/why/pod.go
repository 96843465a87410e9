package why

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// A PodAnswer says why a pod has a sidecar, or none.
type PodAnswer struct {
	Pod string `json:"pod"`
	// Proxy says that it has a sidecar now.
	Proxy bool `json:"proxy"`
	// Outcome and Reason are the verdict on the pod as it would be admitted now.
	Outcome string          `json:"outcome"`
	Reason  injector.Reason `json:"reason"`
	Message string          `json:"message"`
	// Do says what brings what the pod has and what it would get together, if they
	// differ, or what would give it a sidecar.
	Do string `json:"do,omitempty"`
}

// Pod answers why a pod has a sidecar, or none. The error says why it cannot.
func (w World) Pod(namespace, name string) (PodAnswer, error) {
	i := slices.IndexFunc(w.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return PodAnswer{}, fmt.Errorf("there is no pod %s/%s", namespace, name)
	}
	ns := w.namespace(namespace)
	if ns == nil {
		return PodAnswer{}, fmt.Errorf("there is no namespace %s", namespace)
	}
	pod := w.Pods[i]
	about := injector.Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}
	v := injector.Decide(injector.Request{Namespace: about, Match: injector.MatchNamespace(about, w.Injector), Pod: pod}, w.Injector)
	out := PodAnswer{
		Pod: namespace + "/" + name, Outcome: v.Outcome.String(), Reason: v.Reason, Message: v.Message,
		Proxy: slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == injector.ProxyContainer }),
	}
	out.Do = w.todo(pod, out.Proxy, v)
	return out, nil
}

// todo says what to do where the pod and the verdict differ, or where a sidecar
// is a label away.
func (w World) todo(pod *corev1.Pod, proxy bool, v injector.Verdict) string {
	ns := pod.Namespace
	switch {
	case v.Outcome == injector.Injected && !proxy:
		return fmt.Sprintf("It was admitted before that held. Make it anew: %s", restart(pod))
	case v.Outcome == injector.Injected:
		return ""
	case proxy:
		return fmt.Sprintf("It was admitted before that held, and keeps its proxy until it is made anew: %s", restart(pod))
	}
	switch v.Reason {
	case injector.OutsideMesh:
		return fmt.Sprintf("To give it one: kubectl label namespace %s %s=enabled, then %s", ns, annotation.Inject, restart(pod))
	case injector.PodDisabled:
		return fmt.Sprintf("To give it one, take the label or annotation away that says so (%s or %s).", annotation.Inject, annotation.OSMInject)
	case injector.NamespaceDisabled:
		return fmt.Sprintf("To give it one, put the label %s=enabled on the pod's template.", annotation.Inject)
	case injector.NotEnabled:
		return fmt.Sprintf("To give it one: kubectl annotate namespace %s %s=enabled, then %s", ns, annotation.OSMInject, restart(pod))
	case injector.InvalidValue:
		return "Correct the value: no such pod is admitted now."
	}
	return ""
}

// restart is how to make a pod anew.
func restart(p *corev1.Pod) string {
	for _, o := range p.OwnerReferences {
		switch o.Kind {
		case "StatefulSet", "DaemonSet":
			return fmt.Sprintf("kubectl -n %s rollout restart %s/%s", p.Namespace, strings.ToLower(o.Kind), o.Name)
		case "ReplicaSet":
			// A Deployment's ReplicaSets end with the hash of their template.
			if hash := p.Labels["pod-template-hash"]; hash != "" && strings.HasSuffix(o.Name, "-"+hash) {
				return fmt.Sprintf("kubectl -n %s rollout restart deployment/%s", p.Namespace, strings.TrimSuffix(o.Name, "-"+hash))
			}
		}
	}
	if len(p.OwnerReferences) > 0 {
		return fmt.Sprintf("kubectl -n %s delete pod %s", p.Namespace, p.Name)
	}
	return fmt.Sprintf("delete and create pod %s/%s", p.Namespace, p.Name)
}
