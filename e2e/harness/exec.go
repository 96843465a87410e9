package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	err := c.Stream(ctx, pod, container, Streams{Out: &stdout, Err: &stderr}, command...)
	result := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var ended utilexec.CodeExitError
	if errors.As(err, &ended) {
		result.Code = ended.Code
		return result, nil
	}
	return result, err
}

// Streams are what a command in a pod reads and writes. In may be nil.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Stream is like Exec and hands input and output on as they come.
func (c *Cluster) Stream(ctx context.Context, pod corev1.Pod, container string, streams Streams, command ...string) error {
	request := c.Set.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: command, Stdin: streams.In != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(c.Config, "POST", request.URL())
	if err != nil {
		return fmt.Errorf("exec in %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: streams.In, Stdout: streams.Out, Stderr: streams.Err})
	if err != nil {
		return fmt.Errorf("exec in %s/%s (%s): %w", pod.Namespace, pod.Name, container, err)
	}
	return nil
}

// Dial connects to an address as it is seen from a pod of the client image, so
// that tests can speak to pods of any cluster. The connection ends with ctx.
func (c *Cluster) Dial(ctx context.Context, pod corev1.Pod, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial from %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	ours, theirs := net.Pipe()
	go func() {
		// How nc ended says nothing that the end of the connection does not.
		_ = c.Stream(ctx, pod, pod.Spec.Containers[0].Name, Streams{In: theirs, Out: theirs, Err: io.Discard}, "/bin/nc", host, port)
		theirs.Close()
	}()
	return ours, nil
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
	var last error
	for {
		err := check(limited)
		if err == nil {
			return nil
		}
		// A check that was cut off at the end says nothing of its own.
		if last == nil || limited.Err() == nil {
			last = err
		}
		select {
		case <-limited.Done():
			return fmt.Errorf("not within %s: %w", within, last)
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
