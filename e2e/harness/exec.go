package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// A Result is what a command in a pod wrote and how it ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Exec runs a command in a container and waits for its end. A command that ends
// with another status than 0 is not an error; one that could not be run is.
func (c *Cluster) Exec(ctx context.Context, pod corev1.Pod, container string, command ...string) (Result, error) {
	var stdout, stderr bytes.Buffer
	err := c.Stream(ctx, pod, container, &stdout, &stderr, command...)
	result := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var ended utilexec.CodeExitError
	if errors.As(err, &ended) {
		result.Code = ended.Code
		return result, nil
	}
	return result, err
}

// Stream is like Exec and hands the output on as it comes.
func (c *Cluster) Stream(ctx context.Context, pod corev1.Pod, container string, stdout, stderr io.Writer, command ...string) error {
	request := c.Set.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(c.Config, "POST", request.URL())
	if err != nil {
		return fmt.Errorf("exec in %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
	if err != nil {
		return fmt.Errorf("exec in %s/%s (%s): %w", pod.Namespace, pod.Name, container, err)
	}
	return nil
}

// Logs returns what a container wrote.
func (c *Cluster) Logs(ctx context.Context, pod corev1.Pod, container string) (string, error) {
	text, err := c.Set.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("read the logs of %s/%s (%s): %w", pod.Namespace, pod.Name, container, err)
	}
	return string(text), nil
}

// Eventually calls check until it returns nil, and returns its last error when
// that takes too long.
func Eventually(ctx context.Context, within time.Duration, check func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(limited)
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			return fmt.Errorf("not within %s: %w", within, err)
		case <-tick.C:
		}
	}
}

func parseSelector(selector string) (labels.Selector, error) {
	parsed, err := labels.Parse(selector)
	if err != nil {
		return nil, fmt.Errorf("parse selector %q: %w", selector, err)
	}
	return parsed, nil
}
