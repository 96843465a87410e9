//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func probe(handler corev1.ProbeHandler) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 120}
}

func httpProbe(port intstr.IntOrString, path string) *corev1.Probe {
	return probe(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port, Path: path}})
}

// TestProbesOfAllKindsSucceed runs a pod in strict mode, where the kubelet's own
// plain text would be refused.
func TestProbesOfAllKindsSucceed(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	image := cluster.Image("bookstore")
	a := httpEcho("http")
	a.change = func(spec *corev1.PodSpec) {
		http := &spec.Containers[0]
		http.StartupProbe = httpProbe(intstr.FromString("http"), "/startup")
		http.LivenessProbe = httpProbe(intstr.FromInt32(8080), "/liveness")
		http.ReadinessProbe = httpProbe(intstr.FromString("http"), "/readiness")
		spec.Containers = append(spec.Containers,
			corev1.Container{
				Name: "tcp", Image: image, Args: []string{"tcp-echo"},
				Ports:          []corev1.ContainerPort{{Name: "echo", ContainerPort: 9000}},
				LivenessProbe:  probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("echo")}}),
				ReadinessProbe: probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9000)}}),
			},
			corev1.Container{
				Name: "grpc", Image: image, Args: []string{"grpc-health", "--port=9090"},
				ReadinessProbe: probe(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9090}}),
			},
			corev1.Container{
				Name: "exec", Image: image, Args: []string{"wait"},
				ReadinessProbe: probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bookstore", "--version"}}}),
			},
		)
	}
	pod := a.run(t, ns)
	for _, container := range pod.Spec.Containers {
		p := container.ReadinessProbe
		switch {
		case container.Name == "exec" && (p.Exec == nil || p.HTTPGet != nil):
			t.Errorf("the exec probe was changed: %v", p)
		case container.Name != "exec" && (p.HTTPGet == nil || p.HTTPGet.Port.IntValue() != 15020):
			t.Errorf("the probe of container %s does not go to the agent: %v", container.Name, p)
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.RestartCount != 0 {
			t.Errorf("container %s was restarted %d times", status.Name, status.RestartCount)
		}
	}
}

// TestProbesThatFailWithoutTheMeshFailWithIt has probes of ports where nobody
// listens.
func TestProbesThatFailWithoutTheMeshFailWithIt(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	wrong := intstr.FromInt32(9999)
	never := map[string]*corev1.Probe{
		"http": httpProbe(wrong, "/"),
		"tcp":  probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: wrong}}),
		"grpc": probe(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9999}}),
		// The application answers, and says no.
		"refused": httpProbe(intstr.FromInt32(8080), "/no-such-probe"),
	}
	a := app{name: "app", args: []string{"warehouse", "--port=8080"}}
	a.change = func(spec *corev1.PodSpec) {
		for name, p := range never {
			spec.Containers = append(spec.Containers, corev1.Container{
				Name: name, Image: cluster.Image("bookstore"), Args: []string{"wait"}, ReadinessProbe: p,
			})
		}
		spec.Containers = append(spec.Containers, corev1.Container{
			Name: "startup", Image: cluster.Image("bookstore"), Args: []string{"wait"}, StartupProbe: httpProbe(wrong, "/"),
		})
	}
	created := a.create(t, ns)
	eventually(t, func(ctx context.Context) error {
		var events corev1.EventList
		if err := cluster.Client.List(ctx, &events, client.InNamespace(ns)); err != nil {
			return err
		}
		var missing []string
		for _, container := range []string{"http", "tcp", "grpc", "refused", "startup"} {
			if !unhealthy(events, container) {
				missing = append(missing, container)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("no failed probe was reported of %v", missing)
		}
		return nil
	})
	// The kubelet writes a pod's status a little later than its events.
	pod := &corev1.Pod{}
	eventually(t, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(created), pod); err != nil {
			return err
		}
		for _, status := range pod.Status.ContainerStatuses {
			if status.State.Running == nil {
				return fmt.Errorf("container %s does not run: %v", status.Name, status.State)
			}
			if status.Name == "app" && !status.Ready {
				return errors.New("container app is not ready")
			}
		}
		return nil
	})
	for _, status := range pod.Status.ContainerStatuses {
		if status.Ready != (status.Name == "app") {
			t.Errorf("container %s: ready is %t", status.Name, status.Ready)
		}
	}
}

func unhealthy(events corev1.EventList, container string) bool {
	for _, event := range events.Items {
		if event.Reason == "Unhealthy" && strings.Contains(event.InvolvedObject.FieldPath, "{"+container+"}") {
			return true
		}
	}
	return false
}
