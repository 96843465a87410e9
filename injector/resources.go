package injector

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// guaranteedCPU is the least CPU limit that a Guaranteed pod's sidecar gets
// unless the pod says otherwise: its limit must equal its request, and with the
// few millicores that are enough as a request Envoy would take minutes to start.
func guaranteedCPU() resource.Quantity { return resource.MustParse("100m") }

// resources returns what both containers of the sidecar get. The init container
// ends before the proxy starts, so asking the same for it costs nothing.
//
// A quota may want requests and limits of every container, so there are always
// some, unless the pod has resources as a whole: then that is its budget, and
// more containers share it.
func resources(pod *corev1.Pod, s Resources, own annotation.Proxy) (corev1.ResourceRequirements, error) {
	if pod.Spec.Resources != nil && len(pod.Spec.Resources.Requests)+len(pod.Spec.Resources.Limits) > 0 {
		s = Resources{}
	}
	guaranteed := guaranteed(pod)
	if floor := guaranteedCPU(); guaranteed && s.CPULimit.IsZero() && own.CPU == nil && s.CPU.Cmp(floor) < 0 {
		s.CPU = floor
	}
	cpu, cpuLimit, err := reconcile(s.CPU, s.CPULimit, own.CPU, own.CPULimit, annotation.ProxyCPU, annotation.ProxyCPULimit)
	if err != nil {
		return corev1.ResourceRequirements{}, err
	}
	memory, memoryLimit, err := reconcile(s.Memory, s.MemoryLimit, own.Memory, own.MemoryLimit, annotation.ProxyMemory, annotation.ProxyMemoryLimit)
	if err != nil {
		return corev1.ResourceRequirements{}, err
	}
	if guaranteed {
		cpu, cpuLimit = same(cpu, cpuLimit)
		memory, memoryLimit = same(memory, memoryLimit)
	}
	return corev1.ResourceRequirements{Requests: list(cpu, memory), Limits: list(cpuLimit, memoryLimit)}, nil
}

// reconcile lets a pod's annotations override the mesh's request and limit, each
// its own. Where only one was overridden and the other would contradict it, the
// other gives way.
func reconcile(request, limit resource.Quantity, ownRequest, ownLimit *resource.Quantity, requestKey, limitKey string) (resource.Quantity, resource.Quantity, error) {
	if ownRequest != nil {
		request = *ownRequest
	}
	if ownLimit != nil {
		limit = *ownLimit
	}
	if limit.IsZero() || request.Cmp(limit) <= 0 {
		return request, limit, nil
	}
	switch {
	case ownLimit == nil:
		return request, request, nil
	case ownRequest == nil:
		return limit, limit, nil
	default:
		allowed := fmt.Sprintf("at most what %s says, %s", limitKey, &limit)
		return request, limit, &annotation.Error{Object: "pod annotation", Key: requestKey, Value: request.String(), Allowed: allowed}
	}
}

// same makes request and limit equal: the limit where there is one.
func same(request, limit resource.Quantity) (resource.Quantity, resource.Quantity) {
	if limit.IsZero() {
		return request, request
	}
	return limit, limit
}

func list(cpu, memory resource.Quantity) corev1.ResourceList {
	var l corev1.ResourceList
	add := func(name corev1.ResourceName, amount resource.Quantity) {
		if amount.IsZero() {
			return
		}
		if l == nil {
			l = corev1.ResourceList{}
		}
		l[name] = amount.DeepCopy()
	}
	add(corev1.ResourceCPU, cpu)
	add(corev1.ResourceMemory, memory)
	return l
}

// guaranteed reports whether the pod without its sidecar is of the QoS class
// Guaranteed: every container has limits for CPU and memory, and requests that
// equal them or are left out.
func guaranteed(pod *corev1.Pod) bool {
	containers := foreign(pod)
	for _, c := range containers {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit := c.Resources.Limits[name]
			request, ok := c.Resources.Requests[name]
			if limit.Sign() <= 0 || ok && request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return len(containers) > 0
}
