package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// An Answer is what came of one request that a pod made.
type Answer struct {
	Status   int    `json:"status"` // 0 where Error says why there was no answer
	Identity string `json:"identity"`
	// Refusal is the beginning of the body of an answer that is not 2xx.
	Refusal string `json:"refusal"`
	Error   string `json:"error"`
}

// Want returns an error unless the answer has that status; 0 is no answer at all.
func (a Answer) Want(status int) error {
	if a.Status == status && (status != 0 || a.Error != "") {
		return nil
	}
	return fmt.Errorf("answered %d; %d wanted: %s", a.Status, status, strings.TrimSpace(a.Refusal+a.Error))
}

// Call sends one request from a pod that has the bookstore program, over a
// connection of its own, with flags of `bookstore job`.
func (c *Cluster) Call(ctx context.Context, pod corev1.Pod, url string, flags ...string) (Answer, error) {
	command := append([]string{"/bookstore", "job", "--url", url}, flags...)
	result, err := c.Exec(ctx, pod, pod.Spec.Containers[0].Name, command...)
	if err != nil {
		return Answer{}, err
	}
	var answer Answer
	if err := json.Unmarshal([]byte(result.Stdout), &answer); err != nil {
		return Answer{}, fmt.Errorf("read what job printed (status %d, %s): %w", result.Code, result.Stderr, err)
	}
	return answer, nil
}

// Connect opens a TCP connection from a pod that has the bookstore program, with
// flags of `bookstore tcp-client`, and returns what came over it and how it ended.
func (c *Cluster) Connect(ctx context.Context, pod corev1.Pod, address string, flags ...string) (received, end string, err error) {
	command := append([]string{"/bookstore", "tcp-client", "--address", address}, flags...)
	result, err := c.Exec(ctx, pod, pod.Spec.Containers[0].Name, command...)
	return result.Stdout, strings.TrimSpace(result.Stderr), err
}

// A Load is what `bookstore load` counted.
type Load struct {
	Requests   int                `json:"requests"`
	Codes      map[string]int     `json:"codes"`      // by status; "error" is no answer
	Identities map[string]int     `json:"identities"` // by who answered
	Errors     map[string]int     `json:"errors"`
	Refusals   map[string]int     `json:"refusals"` // by the first line of the body
	Latency    map[string]float64 `json:"latencyMilliseconds"`
}

// All reports whether every request was answered with one status.
func (l Load) All(code string) error {
	if l.Requests == 0 || l.Codes[code] != l.Requests {
		return fmt.Errorf("of %d requests not all were answered with %s: %v %v %v", l.Requests, code, l.Codes, l.Errors, l.Refusals)
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
	return parseLoad(result)
}

func parseLoad(result Result) (Load, error) {
	var load Load
	if err := json.Unmarshal([]byte(result.Stdout), &load); err != nil {
		return Load{}, fmt.Errorf("read what load printed (status %d, %s): %w", result.Code, result.Stderr, err)
	}
	return load, nil
}

// StartLoad sends requests from a pod of the client image until stop is called,
// which returns what was counted. Only one may run in a pod.
func (c *Cluster) StartLoad(ctx context.Context, pod corev1.Pod, url string, flags ...string) (stop func() (Load, error)) {
	container := pod.Spec.Containers[0].Name
	// The shell writes down its process id, and becomes the load. A pod may have several.
	file := fmt.Sprintf("/tmp/load-%d.pid", time.Now().UnixNano())
	script := `echo $$ > ` + file + `; exec /bookstore load --requests 0 --duration 10m --url "$@"`
	command := append([]string{"/bin/sh", "-c", script, "sh", url}, flags...)
	type end struct {
		result Result
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		result, err := c.Exec(ctx, pod, container, command...)
		ended <- end{result, err}
	}()
	return func() (Load, error) {
		// The load may not have begun yet.
		err := Eventually(ctx, time.Minute, func(ctx context.Context) error {
			killed, err := c.Exec(ctx, pod, container, "/bin/sh", "-c", "kill -TERM $(cat "+file+")")
			if err == nil && killed.Code != 0 {
				err = errors.New(killed.Stderr)
			}
			return err
		})
		e := <-ended
		if err := errors.Join(err, e.err); err != nil {
			return Load{}, fmt.Errorf("stop the load: %w", err)
		}
		return parseLoad(e.result)
	}
}

// A HeldLine is one answer over a connection that `bookstore hold` keeps open.
type HeldLine struct {
	Time   time.Time `json:"time"`
	Status int       `json:"status"`
	Reused bool      `json:"reused"`
	// Identity is who answered, where the protocol tells it.
	Identity string `json:"identity"`
	Error    string `json:"error"`
}

// Hold keeps a connection open from a pod and hands on each answer until ctx
// ends. The channel is closed then; the error of the end is not interesting.
func (c *Cluster) Hold(ctx context.Context, pod corev1.Pod, url string, flags ...string) <-chan HeldLine {
	lines := make(chan HeldLine, 64)
	reader, writer := io.Pipe()
	command := append([]string{"/bookstore", "hold", "--url", url, "--interval", "20ms"}, flags...)
	go func() {
		writer.CloseWithError(c.Stream(ctx, pod, pod.Spec.Containers[0].Name, Streams{Out: writer, Err: io.Discard}, command...))
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

// Stat returns the sum of those of a proxy's statistics whose names contain
// text, as in "ssl.handshake".
func (c *Cluster) Stat(ctx context.Context, pod corev1.Pod, text string) (int, error) {
	result, err := c.Exec(ctx, pod, "outrigger-proxy", "/outrigger-agent", "admin", "GET", "/stats")
	if err != nil {
		return 0, err
	}
	sum := 0
	lines := bufio.NewScanner(bytes.NewBufferString(result.Stdout))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if !strings.Contains(name, text) {
			continue
		}
		n := 0
		if _, err := fmt.Sscan(value, &n); err != nil {
			return 0, fmt.Errorf("read statistic %s of pod %s/%s: %w", name, pod.Namespace, pod.Name, err)
		}
		sum += n
	}
	return sum, nil
}
