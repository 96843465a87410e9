package harness

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metadataclient "k8s.io/client-go/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Inventory returns what objects the cluster holds, as "KIND NAMESPACE/NAME",
// without those that come and go by themselves. It serves to compare.
func (c *Cluster) Inventory(ctx context.Context) (map[string]bool, error) {
	lists, err := c.Set.Discovery().ServerPreferredResources()
	if err != nil {
		return nil, fmt.Errorf("list the kinds of objects: %w", err)
	}
	metadata, err := metadataclient.NewForConfig(c.Config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	found := map[string]bool{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("read the kinds of objects: %w", err)
		}
		for _, kind := range list.APIResources {
			// The pods of the cluster itself may have been replaced, and an address
			// goes with its Service.
			passing := []string{"Event", "Lease", "Pod", "PodMetrics", "EndpointSlice", "IPAddress"}
			if !slices.Contains(kind.Verbs, "list") || slices.Contains(passing, kind.Kind) {
				continue
			}
			objects, err := metadata.Resource(version.WithResource(kind.Name)).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", kind.Name, err)
			}
			for _, object := range objects.Items {
				found[kind.Kind+" "+object.Namespace+"/"+object.Name] = true
			}
		}
	}
	return found, nil
}

// logTail is how many lines of a log a report shows.
const logTail = 25

// Report tells what can be seen of namespaces after something went wrong: pods,
// warnings, and the ends of the logs of the sidecars and of the control plane.
// What cannot be read is told too.
func (c *Cluster) Report(ctx context.Context, namespaces ...string) string {
	var out strings.Builder
	for _, namespace := range append(slices.Clone(namespaces), SystemNamespace) {
		fmt.Fprintf(&out, "--- namespace %s\n", namespace)
		var pods corev1.PodList
		if err := c.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			fmt.Fprintln(&out, err)
		}
		for _, pod := range pods.Items {
			fmt.Fprintf(&out, "pod %s (%s): ready %t, %s\n", pod.Name, pod.Status.PodIP, isReady(&pod), describe(&pod))
			for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				if strings.HasPrefix(container.Name, "outrigger") {
					c.tail(ctx, &out, pod, container.Name)
				}
			}
		}
		c.warnings(ctx, &out, namespace)
	}
	return out.String()
}

func (c *Cluster) tail(ctx context.Context, out *strings.Builder, pod corev1.Pod, container string) {
	text, err := c.Set.CoreV1().Pods(pod.Namespace).
		GetLogs(pod.Name, &corev1.PodLogOptions{Container: container, TailLines: new(int64(logTail))}).DoRaw(ctx)
	if err != nil {
		text = []byte(err.Error())
	}
	for line := range strings.Lines(string(text)) {
		fmt.Fprintf(out, "    %s: %s\n", container, strings.TrimSpace(line))
	}
}

func (c *Cluster) warnings(ctx context.Context, out *strings.Builder, namespace string) {
	events, err := c.Set.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		fmt.Fprintln(out, err)
		return
	}
	for _, event := range events.Items {
		fmt.Fprintf(out, "warning %s %s %s: %s\n", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Reason, event.Message)
	}
}
