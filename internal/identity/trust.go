package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Trust keeps the roots in the namespaces of the mesh, where pods mount them to
// verify outriggerd. Only the elected replica should run it.
type Trust struct {
	Home        Home
	Authorities *Authorities
}

// A TrustAction is what Sync did to a ConfigMap.
type TrustAction string

// What Sync does.
const (
	TrustCreated  TrustAction = "created"
	TrustRestored TrustAction = "restored" // somebody had changed it, or the roots are new
	TrustDeleted  TrustAction = "deleted"  // its namespace left the mesh
)

// A TrustChange is something that Sync did, for a log or an Event.
type TrustChange struct {
	Namespace string
	Action    TrustAction
}

// Bundle returns the roots of all that is trusted as PEM. Pods verify outriggerd
// with them, by its exact identity.
func (t Trust) Bundle() (string, error) {
	accepted, err := t.Authorities.Now()
	if err != nil {
		return "", err
	}
	return string(encodeCertificates(accepted.Roots()...)), nil
}

// Sync makes the roots what they should be in the given namespaces and in the
// system namespace, and takes ours out of all others. It returns what it changed,
// by namespace, also when the error says that some could not be changed.
func (t Trust) Sync(ctx context.Context, namespaces []string) ([]TrustChange, error) {
	bundle, err := t.Bundle()
	if err != nil {
		return nil, err
	}
	var list corev1.ConfigMapList
	if err := t.Home.Client.List(ctx, &list, client.MatchingFields{"metadata.name": mesh.TrustConfigMap}); err != nil {
		return nil, fmt.Errorf("list ConfigMaps %s: %w", mesh.TrustConfigMap, err)
	}
	found := make(map[string]*corev1.ConfigMap, len(list.Items))
	for i := range list.Items {
		found[list.Items[i].Namespace] = &list.Items[i]
	}
	var changes []TrustChange
	var errs []error
	done := func(namespace string, action TrustAction, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("keep ConfigMap %s/%s: %w", namespace, mesh.TrustConfigMap, err))
		} else if action != "" {
			changes = append(changes, TrustChange{Namespace: namespace, Action: action})
		}
	}
	wanted := map[string]bool{t.Home.Namespace: true}
	for _, namespace := range namespaces {
		wanted[namespace] = true
	}
	for _, namespace := range slices.Sorted(maps.Keys(wanted)) {
		action, err := t.keep(ctx, t.Home.trust(namespace, []byte(bundle)), found[namespace])
		done(namespace, action, err)
	}
	for namespace, m := range found {
		if !wanted[namespace] && m.Labels[TrustLabel] == t.Home.Mesh {
			// The precondition spares one that somebody else has just made theirs.
			err := t.Home.Client.Delete(ctx, m, client.Preconditions{UID: &m.UID, ResourceVersion: &m.ResourceVersion})
			done(namespace, TrustDeleted, client.IgnoreNotFound(err))
		}
	}
	slices.SortFunc(changes, func(a, b TrustChange) int { return cmp.Compare(a.Namespace, b.Namespace) })
	return changes, errors.Join(errs...)
}

// keep makes one ConfigMap what it should be.
func (t Trust) keep(ctx context.Context, want, found *corev1.ConfigMap) (TrustAction, error) {
	if found == nil {
		err := t.Home.Client.Create(ctx, want)
		if isGone(err) {
			return "", nil
		}
		if apierrors.IsAlreadyExists(err) {
			err = errors.New("it appeared just now; it is looked at again next time")
		}
		return TrustCreated, err
	}
	if maps.Equal(found.Data, want.Data) && len(found.BinaryData) == 0 && found.Labels[TrustLabel] == t.Home.Mesh {
		return "", nil
	}
	changed := found.DeepCopy()
	changed.Data, changed.BinaryData = want.Data, nil
	if changed.Labels == nil {
		changed.Labels = map[string]string{}
	}
	changed.Labels[TrustLabel] = t.Home.Mesh
	err := t.Home.Client.Patch(ctx, changed, client.MergeFromWithOptions(found, client.MergeFromWithOptimisticLock{}))
	if isGone(err) {
		return "", nil
	}
	return TrustRestored, err
}
