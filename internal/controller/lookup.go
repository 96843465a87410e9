package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// A Lookup answers questions about namespaces: from the cache,
// and where the cache may be behind, from the API server.
type Lookup struct {
	Cached client.Reader
	// Live may be nil: then only the cache is asked.
	Live client.Reader
	// OSMMesh and SystemNamespace say which namespaces are in the mesh.
	OSMMesh, SystemNamespace string
}

// Namespace returns a namespace, or an error that apierrors.IsNotFound
// recognises. The API server is asked when the cache does not know it.
func (l Lookup) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	ns := &corev1.Namespace{}
	err := l.Cached.Get(ctx, client.ObjectKey{Name: name}, ns)
	if apierrors.IsNotFound(err) && l.Live != nil {
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
