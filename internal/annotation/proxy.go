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

const (
	allowedAmount = "a quantity above zero, such as 100m for CPU or 64Mi for memory"
	allowedImage  = "the name of an image, without spaces"
)

func allowedLogLevel() string { return "one of " + strings.Join(LogLevels(), ", ") }

func allowedConcurrency() string {
	return "a number of threads from 1 to " + strconv.Itoa(MaxConcurrency)
}

func proxySubject() subject {
	amount := func(name, what string) Key {
		return Key{Name: name, On: Pod, Type: "quantity", Allowed: allowedAmount, Effect: what}
	}
	s := subject{
		title: "The sidecar of a pod",
		text:  "Each annotation changes its own setting of the sidecar and leaves the others as they are in the whole mesh.",
		keys: []Key{
			amount(ProxyCPU, "CPU that the sidecar requests"),
			amount(ProxyMemory, "memory that the sidecar requests"),
			amount(ProxyCPULimit, "limit of the sidecar's CPU"),
			amount(ProxyMemoryLimit, "limit of the sidecar's memory"),
			{Name: ProxyImage, On: Pod, Type: "name", Allowed: allowedImage, Effect: "another image for the sidecar"},
			{Name: ProxyLogLevel, On: Pod, Type: "word", Allowed: allowedLogLevel(), Effect: "how much Envoy logs"},
			{Name: ProxyConcurrency, On: Pod, Type: "number", Unit: "threads", Allowed: allowedConcurrency(), Effect: "Envoy's worker threads"},
		},
	}
	return ofPod(s, "the chart's", func(annotations map[string]string) error {
		_, err := ParseProxy(annotations)
		return err
	})
}

// ofPod completes the keys of a subject whose values parse reads from pods.
func ofPod(s subject, defaults string, parse func(annotations map[string]string) error) subject {
	for i := range s.keys {
		k := &s.keys[i]
		k.Default, k.Otherwise = defaults, "the pod is refused"
		k.Valid = func(value string) bool { return parse(map[string]string{k.Name: value}) == nil }
	}
	return s
}

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
			refuse(q.key, allowedAmount)
			continue
		}
		*q.to = &amount
	}
	if image, ok := annotations[ProxyImage]; ok && (image == "" || strings.ContainsFunc(image, isSpaceOrControl)) {
		refuse(ProxyImage, allowedImage)
	}
	if level, ok := annotations[ProxyLogLevel]; ok {
		if p.LogLevel = strings.ToLower(level); !slices.Contains(LogLevels(), p.LogLevel) {
			refuse(ProxyLogLevel, allowedLogLevel())
		}
	}
	if text, ok := annotations[ProxyConcurrency]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxConcurrency {
			refuse(ProxyConcurrency, allowedConcurrency())
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
