package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/injector"
)

// A pod counts as long as its proxy runs or will; what it was made with is asked of
// the cache until it runs.
func TestWhichPodsCount(t *testing.T) {
	running := []corev1.ContainerStatus{{Name: injector.ProxyContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	waiting := []corev1.ContainerStatus{{Name: injector.ProxyContainer, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}
	now := metav1.Now()
	cases := map[string]struct {
		change    func(*corev1.Pod)
		runs, due bool
	}{
		"Scheduled":   {func(*corev1.Pod) {}, false, true},
		"PullsImages": {func(p *corev1.Pod) { p.Status.InitContainerStatuses = waiting }, false, true},
		"Starts":      {func(p *corev1.Pod) { p.Status.InitContainerStatuses = running }, true, false},
		"Runs":        {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, true, false},
		"Ends":        {func(p *corev1.Pod) { p.DeletionTimestamp = &now }, false, false},
		"Completed":   {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false, false},
		"NoProxy":     {func(p *corev1.Pod) { p.Spec.InitContainers = nil }, false, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			always := corev1.ContainerRestartPolicyAlways
			pod := &corev1.Pod{
				Spec: corev1.PodSpec{InitContainers: []corev1.Container{{
					Name: injector.ProxyContainer, RestartPolicy: &always, Args: []string{"proxy", `{"trustDomain":"old"}`},
				}}},
				Status: corev1.PodStatus{Phase: corev1.PodPending},
			}
			tc.change(pod)
			if _, err := Trim(pod); err != nil {
				t.Fatal(err)
			}
			if got := proxied(pod); got != tc.runs {
				t.Errorf("its proxy runs: %t, want %t", got, tc.runs)
			}
			if got := waits(pod); got != tc.due || over(pod, time.Now()) && got {
				t.Errorf("its proxy will run: %t, want %t", got, tc.due)
			}
			if got := injector.TrustDomains(pod) != nil; got != tc.due {
				t.Errorf("the cache has what it was made with: %t, want %t", got, tc.due)
			}
		})
	}
}
