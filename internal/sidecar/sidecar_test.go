package sidecar

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestIn(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := func(host bool, c ...corev1.Container) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: host, InitContainers: c, Containers: []corev1.Container{{Name: Name}}}}
	}
	proxy := corev1.Container{Name: Name, RestartPolicy: &always}
	cases := map[string]struct {
		reason string
		pod    *corev1.Pod
		want   bool
	}{
		"Injected":  {"as the injector makes it", pod(false, corev1.Container{Name: "outrigger-init"}, proxy), true},
		"Host":      {"it would redirect the node", pod(true, proxy), false},
		"Ends":      {"an init container that ends is none", pod(false, corev1.Container{Name: Name}), false},
		"OtherName": {"a sidecar of the user's", pod(false, corev1.Container{Name: "logs", RestartPolicy: &always}), false},
		"Container": {"the name of an ordinary container says nothing", pod(false), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := In(c.pod); got != c.want {
				t.Errorf("%s: %v", c.reason, got)
			}
		})
	}
}
