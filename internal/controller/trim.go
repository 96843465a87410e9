package controller

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/outrigger-mesh/outrigger/injector"
)

// Trim takes out of an object what the mesh never reads, before the cache keeps
// it: a pod shrinks to about a fifth. It is the cache's transform, and never
// fails.
func Trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	delete(pod.Annotations, corev1.LastAppliedConfigAnnotation)
	pod.Spec.Volumes, pod.Spec.Tolerations, pod.Spec.Affinity = nil, nil, nil
	pod.Status = corev1.PodStatus{
		Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs,
		InitContainerStatuses: runningProxy(pod.Status.InitContainerStatuses),
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i, c := range containers {
			containers[i] = corev1.Container{Name: c.Name, Image: c.Image, Ports: c.Ports, RestartPolicy: c.RestartPolicy, SecurityContext: c.SecurityContext}
			if c.Name == injector.ProxyContainer && waits(pod) { // the trust domains that it was made with
				containers[i].Args = c.Args
			}
		}
	}
	return pod, nil
}

// runningProxy keeps of what the kubelet says that the proxy runs, if it does.
func runningProxy(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	for _, c := range all {
		if c.Name == injector.ProxyContainer && c.State.Running != nil {
			return []corev1.ContainerStatus{{Name: c.Name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		}
	}
	return nil
}
