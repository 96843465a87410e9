package injector

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// identitySource returns where the pod wants its certificate from, if its volumes
// allow it.
func identitySource(pod *corev1.Pod) (annotation.Source, error) {
	source, err := annotation.ParseIdentity(pod.Annotations)
	if err != nil || source.Volume == "" {
		return source, err
	}
	value := pod.Annotations[annotation.Identity]
	if ours(source.Volume) || !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == source.Volume }) {
		return source, &annotation.Error{Object: "pod annotation", Key: annotation.Identity, Value: value, Allowed: "a volume that the pod itself has"}
	}
	if source.Socket != "" {
		return source, nil // the Workload API asks who is calling
	}
	for _, c := range foreign(pod) {
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == source.Volume }) {
			return source, fmt.Errorf("container %s mounts volume %s, from which the sidecar takes its key (%s); give the container a volume of its own", c.Name, source.Volume, annotation.Identity)
		}
	}
	return source, nil
}

// identityOf is how the agent is told.
func identityOf(source annotation.Source) *bootstrap.Identity {
	if source.Volume == "" {
		return nil
	}
	return &bootstrap.Identity{WorkloadAPI: source.Socket}
}
