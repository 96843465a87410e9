package annotation

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// What one pod changes about its own sidecar. Each annotation overrides its own
// field of the mesh's settings and no other.
const (
	ProxyCPU         = "outrigger.dev/proxy-cpu"
	ProxyMemory      = "outrigger.dev/proxy-memory"
	ProxyCPULimit    = "outrigger.dev/proxy-cpu-limit"
	ProxyMemoryLimit = "outrigger.dev/proxy-memory-limit"
	ProxyImage       = "outrigger.dev/proxy-image"
	ProxyLogLevel    = "outrigger.dev/proxy-log-level"
	ProxyConcurrency = "outrigger.dev/proxy-concurrency"
)

// LogLevels are Envoy's, from most to least.
func LogLevels() []string {
	return []string{"trace", "debug", "info", "warning", "error", "critical", "off"}
}

// MaxConcurrency bounds the number of worker threads that a pod may ask for.
const MaxConcurrency = 128

// A Proxy is what a pod's annotations say about its sidecar. A zero field means
// that the pod says nothing about it.
type Proxy struct {
	CPU, Memory           *resource.Quantity // requests
	CPULimit, MemoryLimit *resource.Quantity
	Image                 string
	LogLevel              string
	Concurrency           int
}

// ParseProxy reads the annotations of a pod. The error joins an [*Error] for each
// value that is not allowed.
func ParseProxy(annotations map[string]string) (Proxy, error) {
	p := Proxy{Image: strings.TrimSpace(annotations[ProxyImage])}
	var errs []error
	refuse := func(key, allowed string) {
		errs = append(errs, podError(key, annotations[key], allowed))
	}
	for _, q := range []struct {
		key string
		to  **resource.Quantity
	}{
		{ProxyCPU, &p.CPU}, {ProxyMemory, &p.Memory}, {ProxyCPULimit, &p.CPULimit}, {ProxyMemoryLimit, &p.MemoryLimit},
	} {
		text, ok := annotations[q.key]
		if !ok {
			continue
		}
		amount, err := resource.ParseQuantity(text)
		if err != nil || amount.Sign() <= 0 {
			refuse(q.key, "a quantity above zero, such as 100m for CPU or 64Mi for memory")
			continue
		}
		*q.to = &amount
	}
	if image, ok := annotations[ProxyImage]; ok && (image == "" || strings.ContainsFunc(image, isSpaceOrControl)) {
		refuse(ProxyImage, "the name of an image, without spaces")
	}
	if level, ok := annotations[ProxyLogLevel]; ok {
		if p.LogLevel = strings.ToLower(level); !slices.Contains(LogLevels(), p.LogLevel) {
			refuse(ProxyLogLevel, "one of "+strings.Join(LogLevels(), ", "))
		}
	}
	if text, ok := annotations[ProxyConcurrency]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxConcurrency {
			refuse(ProxyConcurrency, "a number of threads from 1 to "+strconv.Itoa(MaxConcurrency))
		}
		p.Concurrency = n
	}
	if err := errors.Join(errs...); err != nil {
		return Proxy{}, err
	}
	return p, nil
}

func podError(key, value, allowed string) *Error {
	return &Error{Object: "pod annotation", Key: key, Value: value, Allowed: allowed}
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r == 0x7f }
