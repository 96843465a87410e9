package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/images/build"
)

// owner is the field manager under which objects are applied.
const owner = client.FieldOwner("outrigger-e2e")

// Objects parses a stream of YAML documents. ${IMAGE:name} becomes the reference
// of one of the project's images.
func (c *Cluster) Objects(text string) ([]*unstructured.Unstructured, error) {
	for _, name := range build.Names() {
		text = strings.ReplaceAll(text, "${IMAGE:"+name+"}", c.Image(name))
	}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("parse manifests: %w", err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Apply creates or changes what the YAML documents say, in their order.
func (c *Cluster) Apply(ctx context.Context, text string) error {
	objects, err := c.Objects(text)
	if err != nil {
		return err
	}
	return c.ApplyObjects(ctx, objects...)
}

// ApplyObjects creates or changes objects, in their order.
func (c *Cluster) ApplyObjects(ctx context.Context, objects ...*unstructured.Unstructured) error {
	for _, object := range objects {
		err := c.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), client.ObjectKeyFromObject(object), err)
		}
	}
	return nil
}

// Delete removes what the YAML documents name, last first, and does not wait
// until it is gone.
func (c *Cluster) Delete(ctx context.Context, text string) error {
	objects, err := c.Objects(text)
	if err != nil {
		return err
	}
	for n := range objects {
		object := objects[len(objects)-1-n]
		if err := client.IgnoreNotFound(c.Client.Delete(ctx, object)); err != nil {
			return fmt.Errorf("delete %s %s: %w", object.GetKind(), client.ObjectKeyFromObject(object), err)
		}
	}
	return nil
}

// DeleteNamespaces removes namespaces and waits until they are gone.
func (c *Cluster) DeleteNamespaces(ctx context.Context, names ...string) error {
	for _, name := range names {
		ns := &corev1.Namespace{}
		ns.Name = name
		if err := client.IgnoreNotFound(c.Client.Delete(ctx, ns, client.GracePeriodSeconds(1))); err != nil {
			return fmt.Errorf("delete namespace %s: %w", name, err)
		}
	}
	return Eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		for _, name := range names {
			if err := c.Client.Get(ctx, client.ObjectKey{Name: name}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("namespace %s is still there (%w)", name, err)
			}
		}
		return nil
	})
}

// Pods returns the pods of a namespace that a selector such as "app=buyer"
// matches and that are not being deleted.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	opts := &client.ListOptions{Namespace: namespace, Raw: nil}
	if selector != "" {
		parsed, err := parseSelector(selector)
		if err != nil {
			return nil, err
		}
		opts.LabelSelector = parsed
	}
	if err := c.Client.List(ctx, &pods, opts); err != nil {
		return nil, fmt.Errorf("list pods in %s: %w", namespace, err)
	}
	var alive []corev1.Pod
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			alive = append(alive, pod)
		}
	}
	return alive, nil
}

// Ready waits until at least count pods match the selector and all that match
// are ready, and returns them.
func (c *Cluster) Ready(ctx context.Context, namespace, selector string, count int) ([]corev1.Pod, error) {
	var pods []corev1.Pod
	err := Eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		var err error
		if pods, err = c.Pods(ctx, namespace, selector); err != nil {
			return err
		}
		if len(pods) < count {
			return fmt.Errorf("%d pods %s in %s; %d wanted", len(pods), selector, namespace, count)
		}
		for _, pod := range pods {
			if !isReady(&pod) {
				return fmt.Errorf("pod %s/%s is not ready: %s", namespace, pod.Name, describe(&pod))
			}
		}
		return nil
	})
	return pods, err
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// describe says in a line what a pod's containers wait for.
func describe(pod *corev1.Pod) string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "phase %s", pod.Status.Phase)
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		switch {
		case status.State.Waiting != nil:
			fmt.Fprintf(&out, ", %s waits: %s %s", status.Name, status.State.Waiting.Reason, status.State.Waiting.Message)
		case status.State.Terminated != nil && status.State.Terminated.ExitCode != 0:
			fmt.Fprintf(&out, ", %s ended with %d: %s", status.Name, status.State.Terminated.ExitCode, status.State.Terminated.Message)
		case !status.Ready && status.State.Terminated == nil:
			fmt.Fprintf(&out, ", %s not ready", status.Name)
		}
	}
	return out.String()
}
