package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A Load is what `bookstore load` counted.
type Load struct {
	Requests   int                `json:"requests"`
	Codes      map[string]int     `json:"codes"`      // by status; "error" is no answer
	Identities map[string]int     `json:"identities"` // by who answered
	Errors     map[string]int     `json:"errors"`
	Latency    map[string]float64 `json:"latencyMilliseconds"`
}

// All reports whether every request was answered with one status.
func (l Load) All(code string) error {
	if l.Requests == 0 || l.Codes[code] != l.Requests {
		return fmt.Errorf("of %d requests not all were answered with %s: %v %v", l.Requests, code, l.Codes, l.Errors)
	}
	return nil
}

// Load sends requests from a pod that has the bookstore program, with flags of
// `bookstore load`.
func (c *Cluster) Load(ctx context.Context, pod corev1.Pod, url string, flags ...string) (Load, error) {
	command := append([]string{"/bookstore", "load", "--url", url}, flags...)
	result, err := c.Exec(ctx, pod, pod.Spec.Containers[0].Name, command...)
	if err != nil {
		return Load{}, err
	}
	var load Load
	if err := json.Unmarshal([]byte(result.Stdout), &load); err != nil {
		return Load{}, fmt.Errorf("read what load printed (status %d, %s): %w", result.Code, result.Stderr, err)
	}
	return load, nil
}

// A HeldLine is one answer over a connection that `bookstore hold` keeps open.
type HeldLine struct {
	Time   time.Time `json:"time"`
	Status int       `json:"status"`
	Reused bool      `json:"reused"`
	Error  string    `json:"error"`
}

// Hold keeps a connection open from a pod and hands on each answer until ctx
// ends. The channel is closed then; the error of the end is not interesting.
func (c *Cluster) Hold(ctx context.Context, pod corev1.Pod, url string, flags ...string) <-chan HeldLine {
	lines := make(chan HeldLine, 64)
	reader, writer := io.Pipe()
	command := append([]string{"/bookstore", "hold", "--url", url, "--interval", "20ms"}, flags...)
	go func() {
		writer.CloseWithError(c.Stream(ctx, pod, pod.Spec.Containers[0].Name, writer, io.Discard, command...))
	}()
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(reader)
		for scanner.Scan() {
			var line HeldLine
			if json.Unmarshal(scanner.Bytes(), &line) != nil {
				continue
			}
			select {
			case lines <- line:
			case <-ctx.Done():
				reader.CloseWithError(ctx.Err())
				return
			}
		}
	}()
	return lines
}

// Until reads answers until one has the wanted status, and returns it with the
// number of answers before it. Answers that never come are an error.
func Until(ctx context.Context, lines <-chan HeldLine, status int) (HeldLine, int, error) {
	for before := 0; ; before++ {
		select {
		case <-ctx.Done():
			return HeldLine{}, before, fmt.Errorf("no answer with status %d: %w", status, ctx.Err())
		case line, open := <-lines:
			if !open {
				return HeldLine{}, before, fmt.Errorf("no answer with status %d: the connection's log ended", status)
			}
			if line.Status == status {
				return line, before, nil
			}
		}
	}
}
