package injector

import (
	"encoding/json"
	"errors"
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// defaultContainer makes kubectl logs and kubectl exec mean the application.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// Patch returns the operations that make a sidecar, as pod and s want it, part of
// pod. A pod that has it already gets none; one that has a part of it, or an
// older one, gets what differs. Patch does not change pod.
//
// Each operation is written out and not found by comparing two pods: a field that
// this build has not heard of must reach the kubelet untouched.
//
// The error joins everything that a user must change before the pod can have a
// sidecar; the pod must then be refused.
func Patch(pod *corev1.Pod, s Settings) ([]jsonpatch.Operation, error) {
	in := find(pod)
	conflict := conflicts(pod, in)
	probes, ops, probeErr := rewriteProbes(pod, in.probes)
	want, err := render(pod, s, probes)
	if err := errors.Join(conflict, probeErr, err); err != nil {
		return nil, err
	}
	ops = append(ops, defaultContainerOps(pod)...)
	ops = append(ops, volumeOps(pod, want.volumes)...)
	// Last, because the pointers of probes count the init containers as they were.
	return append(ops, initContainerOps(pod, want.init, want.proxy)...), nil
}

func defaultContainerOps(pod *corev1.Pod) []jsonpatch.Operation {
	if _, ok := pod.Annotations[defaultContainer]; ok || len(pod.Spec.Containers) == 0 {
		return nil
	}
	var ops []jsonpatch.Operation
	if pod.Annotations == nil {
		ops = append(ops, add("/metadata/annotations", struct{}{}))
	}
	return append(ops, add("/metadata/annotations/"+escape(defaultContainer), pod.Spec.Containers[0].Name))
}

func volumeOps(pod *corev1.Pod, wanted []corev1.Volume) []jsonpatch.Operation {
	var ops []jsonpatch.Operation
	if pod.Spec.Volumes == nil {
		ops = append(ops, add("/spec/volumes", []corev1.Volume{}))
	}
	for _, want := range wanted {
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == want.Name })
		switch {
		case i < 0:
			ops = append(ops, add("/spec/volumes/-", want))
		case !equality.Semantic.DeepEqual(pod.Spec.Volumes[i], want):
			ops = append(ops, replace("/spec/volumes/"+strconv.Itoa(i), want))
		}
	}
	return ops
}

// initContainerOps puts the wanted containers first, in their order: what runs
// before them would be outside the mesh.
func initContainerOps(pod *corev1.Pod, wanted ...corev1.Container) []jsonpatch.Operation {
	const list = "/spec/initContainers"
	var ops []jsonpatch.Operation
	if pod.Spec.InitContainers == nil {
		ops = append(ops, add(list, []corev1.Container{}))
	}
	now := slices.Clone(pod.Spec.InitContainers)
	for k, want := range wanted {
		i := slices.IndexFunc(now, func(c corev1.Container) bool { return c.Name == want.Name })
		at := list + "/" + strconv.Itoa(k)
		if i == k {
			ops = append(ops, containerOps(at, now[i], keepAdditions(want, now[i]))...)
			continue
		}
		if i >= 0 {
			want = keepAdditions(want, now[i])
			ops = append(ops, remove(list+"/"+strconv.Itoa(i)))
			now = slices.Delete(now, i, i+1)
		}
		ops = append(ops, add(at, want))
		now = slices.Insert(now, k, want)
	}
	return ops
}

// keepAdditions returns want with the variables and mounts that others, such as
// the API server itself, have added to it since. A mount below one of ours is not
// kept: with it the application would share what is written there, the key.
func keepAdditions(want, have corev1.Container) corev1.Container {
	for _, e := range have.Env {
		if !slices.ContainsFunc(want.Env, func(w corev1.EnvVar) bool { return w.Name == e.Name }) {
			want.Env = append(slices.Clip(want.Env), e)
		}
	}
	for _, m := range have.VolumeMounts {
		if !slices.ContainsFunc(want.VolumeMounts, func(w corev1.VolumeMount) bool { return w.Name == m.Name || below(m.MountPath, w.MountPath) }) {
			want.VolumeMounts = append(slices.Clip(want.VolumeMounts), m)
		}
	}
	return want
}

// below reports whether a path is a folder or in it.
func below(name, folder string) bool {
	return strings.HasPrefix(path.Clean(name)+"/", path.Clean(folder)+"/")
}

// containerOps makes every field that we set what it should be. Other fields are
// for others to add, except a command, which would replace ours.
func containerOps(at string, have, want corev1.Container) []jsonpatch.Operation {
	if equality.Semantic.DeepEqual(have, want) {
		return nil
	}
	var ops []jsonpatch.Operation
	has, wants := fields(have), fields(want)
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		if !reflect.DeepEqual(has[name], wants[name]) {
			ops = append(ops, add(at+"/"+name, wants[name]))
		}
	}
	if have.Command != nil {
		ops = append(ops, remove(at+"/command"))
	}
	return ops
}

// fields returns the top-level fields of a container as JSON has them.
func fields(c corev1.Container) map[string]any {
	var m map[string]any
	text, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		panic("container is not JSON: " + err.Error()) // it came from JSON
	}
	return m
}

func add(path string, value any) jsonpatch.Operation {
	return jsonpatch.NewOperation("add", path, value)
}

func replace(path string, value any) jsonpatch.Operation {
	return jsonpatch.NewOperation("replace", path, value)
}

func remove(path string) jsonpatch.Operation { return jsonpatch.NewOperation("remove", path, nil) }

// escape makes a key part of a JSON pointer.
func escape(key string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(key) }
