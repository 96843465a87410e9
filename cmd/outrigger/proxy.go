package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/outrigger-mesh/outrigger/injector"
)

func newProxyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Look at a pod's Envoy",
		Long: `Proxy asks the Envoy of a pod through its agent. Envoy's admin interface has no
port: only who may exec into the pod's sidecar can ask it.`,
	}
	cmd.AddCommand(
		newAdminCommand("get", http.MethodGet, "Read from Envoy: config_dump, clusters, listeners, stats, certs, server_info, ready …",
			"  outrigger proxy get 'stats?filter=ssl' deploy/bookbuyer -n bookbuyer"),
		newAdminCommand("set", http.MethodPost, "Change a log level, or reset counters",
			"  outrigger proxy set 'logging?level=debug' bookbuyer-7d4b9 -n bookbuyer"),
	)
	return cmd
}

func newAdminCommand(name, method, short, example string) *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true)
	cmd := &cobra.Command{
		Use: name + " QUERY POD|deploy/NAME", Short: short, Example: example,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/" + strings.TrimPrefix(args[0], "/")
			return askProxy(cmd.Context(), flags, args[1], []string{"/outrigger-agent", "admin", method, path}, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags.AddFlags(cmd.Flags())
	return cmd
}

// askProxy runs a command in the sidecar of a pod, which is named itself or by
// what owns it.
func askProxy(ctx context.Context, flags *genericclioptions.ConfigFlags, target string, command []string, out, errOut io.Writer) error {
	cfg, err := flags.ToRESTConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	pod, err := findPod(ctx, flags, set, target)
	if err != nil {
		return err
	}
	request := set.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: injector.ProxyContainer, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(cfg, http.MethodPost, request.URL())
	if err == nil {
		err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: errOut})
	}
	if err != nil {
		return fmt.Errorf("ask the proxy of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// findPod returns the pod that target names, or the first running one that a
// workload such as deploy/NAME selects.
func findPod(ctx context.Context, flags *genericclioptions.ConfigFlags, set kubernetes.Interface, target string) (*corev1.Pod, error) {
	namespace, _, err := flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, fmt.Errorf("find the namespace: %w", err)
	}
	object, err := resource.NewBuilder(flags).Unstructured().
		NamespaceParam(namespace).DefaultNamespace().
		ResourceNames("pods", target).
		Do().Object()
	if err != nil {
		return nil, fmt.Errorf("find %s in namespace %s: %w", target, namespace, err)
	}
	found, ok := object.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("find %s in namespace %s: it is a %T", target, namespace, object)
	}
	if found.GetKind() == "Pod" {
		return set.CoreV1().Pods(namespace).Get(ctx, found.GetName(), metav1.GetOptions{})
	}
	labels, _, err := unstructured.NestedStringMap(found.Object, "spec", "selector", "matchLabels")
	if err != nil || len(labels) == 0 {
		return nil, fmt.Errorf("%s in namespace %s selects no pods by label", target, namespace)
	}
	pods, err := set.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})})
	if err != nil {
		return nil, fmt.Errorf("list the pods of %s: %w", target, err)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			return pod, nil
		}
	}
	return nil, fmt.Errorf("no pod of %s in namespace %s runs", target, namespace)
}
