package injector

import (
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// A sidecar is what an earlier injection has left in a pod. It may be all there,
// or in parts: a copy made by kubectl debug keeps init containers and volumes
// and loses labels, annotations and probes.
type sidecar struct {
	init, proxy *corev1.Container
	// probes are the pod's own, by their path at the agent.
	probes map[string]bootstrap.Probe
}

func (s sidecar) present() bool { return s.init != nil || s.proxy != nil }

// find returns what is in the pod of a sidecar.
func find(pod *corev1.Pod) sidecar {
	var found sidecar
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		switch {
		case isInit(*c):
			found.init = c
		case isProxy(*c):
			found.proxy = c
			settings, _ := parseProxyArgs(c.Args)
			found.probes = make(map[string]bootstrap.Probe, len(settings.Probes))
			for _, p := range settings.Probes {
				found.probes[p.Path] = p
			}
		}
	}
	return found
}

// isInit reports whether an init container is one that this package made. One
// that only has the name is the user's, and refused.
func isInit(c corev1.Container) bool {
	return c.Name == InitContainer && len(c.Args) == 2 && c.Args[0] == "apply" && json.Valid([]byte(undouble(c.Args[1])))
}

func isProxy(c corev1.Container) bool {
	if c.Name != ProxyContainer || c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		return false
	}
	_, ok := parseProxyArgs(c.Args)
	return ok
}

func parseProxyArgs(args []string) (bootstrap.Settings, bool) {
	var settings bootstrap.Settings
	if len(args) != 2 || args[0] != "proxy" {
		return settings, false
	}
	err := json.Unmarshal([]byte(undouble(args[1])), &settings)
	return settings, err == nil
}

// TrustDomains returns the trust domains in which a pod's proxy takes outriggerd for
// real until it is told others; none where the pod has no proxy.
func TrustDomains(pod *corev1.Pod) []string {
	for _, c := range pod.Spec.InitContainers {
		if isProxy(c) {
			settings, _ := parseProxyArgs(c.Args)
			return append([]string{settings.TrustDomain}, settings.AlsoTrusted...)
		}
	}
	return nil
}

// double keeps the kubelet from expanding $(NAME) in an argument.
func double(arg string) string { return strings.ReplaceAll(arg, "$", "$$") }

func undouble(arg string) string { return strings.ReplaceAll(arg, "$$", "$") }
