package injector

import (
	"slices"
	"strconv"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
)

// Remove returns the operations that take a sidecar out of pod and give its
// containers their own probes and hooks back. Patching and removing leaves the
// pod as it was, but for the annotation that names the default container: where
// it names the first one, which is the default anyway, it is taken for ours.
//
// A pod without a sidecar gets no operations. Remove does not change pod.
func Remove(pod *corev1.Pod) []jsonpatch.Operation {
	in := find(pod)
	if !in.present() {
		return nil
	}
	var ops []jsonpatch.Operation
	for _, h := range handlers(pod) {
		if p, ok := in.probes[h.path]; ok && h.rewritten() && h.http.Path == h.path {
			ops = append(ops, h.restore(p)...)
		}
	}
	if name, ok := pod.Annotations[defaultContainer]; ok && len(pod.Spec.Containers) > 0 && name == pod.Spec.Containers[0].Name {
		if len(pod.Annotations) == 1 {
			ops = append(ops, remove("/metadata/annotations"))
		} else {
			ops = append(ops, remove("/metadata/annotations/"+escape(defaultContainer)))
		}
	}
	ops = append(ops, removeItems("/spec/volumes", pod.Spec.Volumes, func(v corev1.Volume) bool { return ours(v.Name) })...)
	return append(ops, removeItems("/spec/initContainers", pod.Spec.InitContainers, func(c corev1.Container) bool { return isInit(c) || isProxy(c) })...)
}

// removeItems removes items from the end, so that the pointers of the others stay
// right, or the whole list when nothing would be left of it.
func removeItems[T any](list string, items []T, gone func(T) bool) []jsonpatch.Operation {
	var ops []jsonpatch.Operation
	for i, item := range slices.Backward(items) {
		if gone(item) {
			ops = append(ops, remove(list+"/"+strconv.Itoa(i)))
		}
	}
	if len(items) > 0 && len(ops) == len(items) {
		return []jsonpatch.Operation{remove(list)}
	}
	return ops
}
