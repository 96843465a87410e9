package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A Lookup answers questions about single pods and namespaces: from the cache,
// and where the cache may be behind, from the API server.
type Lookup struct {
	Cached client.Reader
	Live   client.Reader
	// OSMMesh and SystemNamespace say which namespaces are in the mesh.
	OSMMesh, SystemNamespace string
}

// Pod returns a pod that is in the mesh and has a proxy, with exactly this uid,
// and whether there is one. The API server is asked once when the cache does not
// know it.
func (l Lookup) Pod(ctx context.Context, id mesh.ProxyID) (*corev1.Pod, bool, error) {
	key := client.ObjectKey{Namespace: id.Namespace, Name: id.Pod}
	pod := &corev1.Pod{}
	err := l.Cached.Get(ctx, key, pod)
	if apierrors.IsNotFound(err) || err == nil && pod.UID != types.UID(id.UID) {
		pod = &corev1.Pod{}
		err = l.Live.Get(ctx, key, pod)
	}
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read pod %s: %w", key, err)
	}
	if pod.UID != types.UID(id.UID) || !hasProxy(pod) {
		return nil, false, nil
	}
	inMesh, err := l.InMesh(ctx, id.Namespace)
	return pod, inMesh, err
}

// Identity returns the service account of such a pod.
func (l Lookup) Identity(ctx context.Context, id mesh.ProxyID) (mesh.Identity, bool, error) {
	pod, found, err := l.Pod(ctx, id)
	if err != nil || !found {
		return mesh.Identity{}, false, err
	}
	return mesh.Identity{Namespace: pod.Namespace, ServiceAccount: pod.Spec.ServiceAccountName}, true, nil
}

// Namespace returns a namespace. The API server is asked when the cache does not
// know it.
func (l Lookup) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	ns := &corev1.Namespace{}
	err := l.Cached.Get(ctx, client.ObjectKey{Name: name}, ns)
	if apierrors.IsNotFound(err) {
		err = l.Live.Get(ctx, client.ObjectKey{Name: name}, ns)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return ns, nil
}

// InMesh reports whether a namespace is in the mesh now.
func (l Lookup) InMesh(ctx context.Context, name string) (bool, error) {
	ns, err := l.Namespace(ctx, name)
	if err != nil {
		return false, err
	}
	return l.member(ns), nil
}

func (l Lookup) member(ns *corev1.Namespace) bool {
	return !annotation.IsSystem(ns.Name, l.SystemNamespace) && annotation.InMesh(ns.Labels, l.OSMMesh)
}

// Members lists the namespaces that are in the mesh and not being deleted.
func (l Lookup) Members(ctx context.Context) ([]string, error) {
	var all corev1.NamespaceList
	if err := l.Cached.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for i := range all.Items {
		if ns := &all.Items[i]; l.member(ns) && ns.DeletionTimestamp == nil {
			names = append(names, ns.Name)
		}
	}
	return names, nil
}
