package injector

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// Names of what a sidecar consists of. No pod may bring anything of its own whose
// name begins with "outrigger-".
const (
	InitContainer  = "outrigger-init"
	ProxyContainer = "outrigger-proxy"

	prefix      = "outrigger-"
	stateVolume = "outrigger-state"
	tokenVolume = "outrigger-token"
	trustVolume = "outrigger-trust"
)

// The sidecar's own ports. Traffic from outside is never passed on to them.
const firstPort, lastPort = 15000, bootstrap.AgentPort

// conflicts returns everything in the pod that only a sidecar may have. What is
// in already, from an earlier injection, is the sidecar's.
func conflicts(pod *corev1.Pod, in sidecar) error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	for _, v := range pod.Spec.Volumes {
		known := v.Name == stateVolume || v.Name == tokenVolume || v.Name == trustVolume
		if ours(v.Name) && (!known || !in.present()) {
			refuse("volume %s: names that begin with %s belong to the mesh", v.Name, prefix)
		}
	}
	for _, c := range foreign(pod) {
		if ours(c.Name) {
			refuse("container %s: names that begin with %s belong to the mesh", c.Name, prefix)
		}
		for _, m := range c.VolumeMounts {
			if ours(m.Name) {
				refuse("container %s mounts volume %s, which belongs to the mesh", c.Name, m.Name)
			}
		}
		for _, d := range c.VolumeDevices {
			if ours(d.Name) {
				refuse("container %s uses volume %s, which belongs to the mesh", c.Name, d.Name)
			}
		}
		for _, p := range c.Ports {
			if ownPort(p.ContainerPort) && p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP {
				refuse("container %s has port %d: ports %d to %d belong to the mesh", c.Name, p.ContainerPort, firstPort, lastPort)
			}
		}
		if uid := user(pod, c); uid != nil && *uid == bootstrap.ProxyUID {
			refuse("container %s runs as user %d, whose traffic is the sidecar's own and passes no policy; use another user", c.Name, bootstrap.ProxyUID)
		}
	}
	return errors.Join(errs...)
}

// user returns the user that a container runs as, or nil when its image decides.
func user(pod *corev1.Pod, c corev1.Container) *int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser
	}
	return nil
}

func ours(name string) bool { return strings.HasPrefix(name, prefix) }

func ownPort(port int32) bool { return port >= firstPort && port <= lastPort }

// foreign returns the pod's containers without the sidecar's two. Whether a
// container by one of those names really is the sidecar's, [find] has said.
func foreign(pod *corev1.Pod) []corev1.Container {
	var list []corev1.Container
	for _, c := range pod.Spec.InitContainers {
		if !isInit(c) && !isProxy(c) {
			list = append(list, c)
		}
	}
	return slices.Concat(list, pod.Spec.Containers)
}
