package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// Freeze stops a pod's Envoy and agent on this machine, as if they hung: they answer
// nobody, their connections stay open, and the pod counts as running. Thaw lets them
// go on.
func (c *Cluster) Freeze(pod corev1.Pod) error { return c.signalProxy(pod, syscall.SIGSTOP) }

// Thaw lets a pod's Envoy and agent go on after Freeze; of others it changes nothing.
func (c *Cluster) Thaw(pod corev1.Pod) error { return c.signalProxy(pod, syscall.SIGCONT) }

// signalProxy sends a signal to the processes of a pod's sidecar, of which each must be
// there.
func (c *Cluster) signalProxy(pod corev1.Pod, signal syscall.Signal) error {
	if !c.Ours {
		return errors.New("find the processes of a pod: the cluster's nodes are not this machine")
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return fmt.Errorf("find the processes of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	var found []string
	for _, file := range files {
		// Either fails for a process that has ended.
		cgroup, _ := os.ReadFile(file)
		program, _ := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
		name := filepath.Base(program)
		if !strings.Contains(string(cgroup), "/pod"+string(pod.UID)+"/") || name != "outrigger-agent" && name != "envoy" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil {
			err = syscall.Kill(pid, signal)
		}
		if err != nil {
			return fmt.Errorf("send %s to %s of pod %s/%s: %w", signal, name, pod.Namespace, pod.Name, err)
		}
		found = append(found, name)
	}
	if !slices.Contains(found, "outrigger-agent") || !slices.Contains(found, "envoy") {
		return fmt.Errorf("sent %s to %q of pod %s/%s; outrigger-agent and envoy are wanted", signal, found, pod.Namespace, pod.Name)
	}
	return nil
}
