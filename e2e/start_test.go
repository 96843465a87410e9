//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestTheFirstCallOfAnAppSucceeds starts apps that call a server first of all, and
// once only. The server is in enforced mode, so that plain text would be refused.
func TestTheFirstCallOfAnAppSucceeds(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	httpEcho("server").run(t, ns)
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	// The server has heard of the policy when this one is answered.
	answers(t, caller("client").run(t, ns), url, 200)

	names := []string{"first-0", "first-1", "first-2", "first-3"}
	for _, name := range names {
		app{name: name, account: "client", args: []string{"job", "--url", url}, change: once}.create(t, ns)
	}
	for _, name := range names {
		succeeds(t, ns, name)
	}
}

func TestInitContainersAreInTheMesh(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	httpEcho("server").run(t, ns)
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, caller("client").run(t, ns), url, 200)

	a := app{name: "fetches", account: "client", args: []string{"job", "--url", url}}
	a.change = func(spec *corev1.PodSpec) {
		once(spec)
		spec.InitContainers = []corev1.Container{{
			Name: "first", Image: cluster.Image("bookstore"), Args: []string{"job", "--url", url},
		}}
	}
	a.create(t, ns)
	succeeds(t, ns, "fetches")
}

func once(spec *corev1.PodSpec) { spec.RestartPolicy = corev1.RestartPolicyNever }

// succeeds waits until a pod has ended well.
func succeeds(t *testing.T, namespace, name string) {
	t.Helper()
	pod := &corev1.Pod{}
	eventually(t, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, pod); err != nil {
			return err
		}
		if phase := pod.Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return fmt.Errorf("pod %s is %s", name, phase)
		}
		return nil
	})
	if pod.Status.Phase != corev1.PodSucceeded {
		log, err := cluster.Logs(t.Context(), *pod, pod.Spec.Containers[0].Name)
		t.Fatalf("pod %s is %s: %s %v", name, pod.Status.Phase, log, err)
	}
}

func TestAJobCompletes(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	pod := app{name: "job", account: "default", args: []string{"--version"}, change: once}.podIn(ns)
	job := &batchv1.Job{}
	job.Namespace, job.Name = ns, "job"
	job.Spec.BackoffLimit = new(int32(0))
	job.Spec.Template.Spec = pod.Spec
	if err := cluster.Client.Create(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(job), job); err != nil {
			return err
		}
		if job.Status.CompletionTime == nil {
			return fmt.Errorf("the job is not complete: %d active, %d succeeded, %d failed", job.Status.Active, job.Status.Succeeded, job.Status.Failed)
		}
		return nil
	})
	pods, err := cluster.Pods(t.Context(), ns, "job-name=job")
	if err != nil || len(pods) != 1 || !isInjected(&pods[0]) {
		t.Errorf("the job's pods are %d (%v); want one, injected", len(pods), err)
	}
}
