//go:build integration

package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// TestUnstartedPodsBlockAnotherTrustDomain holds that outriggerd does not move to a
// trust domain that a pod which has yet to start was not made with.
func TestUnstartedPodsBlockAnotherTrustDomain(t *testing.T) {
	w := newTurning(t)
	always := corev1.ContainerRestartPolicyAlways
	late := func(name string, args string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.shop, Name: name},
			Spec: corev1.PodSpec{
				InitContainers: []corev1.Container{{Name: injector.ProxyContainer, Image: "i", RestartPolicy: &always, Args: []string{"proxy", args}}},
				Containers:     []corev1.Container{{Name: "app", Image: "i"}},
			},
		}
		w.create(p)
		return p
	}
	before := late("before", `{"trustDomain":"old"}`)
	late("meanwhile", `{"trustDomain":"old","alsoTrusted":["new"]}`)
	w.replica("outriggerd-1", []*corev1.Pod{w.pod(w.shop, "one", nil)})
	defer w.rotator()()
	w.want(func(c *rotation.Control) { c.Goal = rotation.Goal{Sign: builtIn("b", "new")} })
	eventually(t, "it waits for the pod that was made before", func() error {
		seen, _, err := MeshSeen(t.Context(), w.informers, w.lookup, time.Now())
		if err != nil {
			return err
		}
		p := w.read().State.Progress(seen)
		if p.Done != 1 || p.Total != 2 || p.Replicas != 1 || !slices.ContainsFunc(p.Behind, func(b rotation.Behind) bool {
			return b.Who == w.shop+"/before" && strings.Contains(b.Why, "trust domain old alone")
		}) {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	if err := w.admin.Delete(t.Context(), before, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	within(t, rotationTime, "it ends", func() error {
		if s := w.read().State; s.Serving != "b" || s.Rotation != nil {
			return errors.New(string(s.JSON()))
		}
		return nil
	})
}
