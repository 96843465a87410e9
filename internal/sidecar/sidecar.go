// Package sidecar tells pods with a proxy from others. It is what the snapshot, the
// signing of certificates and the reports about pods mean by that.
package sidecar

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Name is what the injector calls the container.
const Name = "outrigger-proxy"

// In reports whether a pod was made with a proxy, which may have ended. A pod in the
// host's network cannot have one, whatever its containers are called.
func In(pod *corev1.Pod) bool {
	return !pod.Spec.HostNetwork && slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == Name && Native(&c)
	})
}

// Native reports whether an init container runs as long as its pod does.
func Native(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
