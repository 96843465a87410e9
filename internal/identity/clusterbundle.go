package identity

import (
	"context"
	"errors"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// bundleKubelet is the first kubelet that mounts ClusterTrustBundles of version
// v1 without being told to.
const bundleKubelet = "1.37.0"

// ClusterBundle returns the name of the mesh's ClusterTrustBundle.
func (h Home) ClusterBundle() string { return "outrigger-" + h.Mesh }

// MountsClusterBundles reports whether the API server has ClusterTrustBundles and
// every node mounts them. Where one does not, a pod that asks for one would hang
// there, so the ConfigMap is what works.
func (h Home) MountsClusterBundles(ctx context.Context) (bool, error) {
	err := h.Client.Get(ctx, client.ObjectKey{Name: h.ClusterBundle()}, &certificatesv1.ClusterTrustBundle{})
	if isUnknownKind(err) {
		return false, nil
	}
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read ClusterTrustBundle %s: %w", h.ClusterBundle(), err)
	}
	var nodes corev1.NodeList
	if err := h.Client.List(ctx, &nodes); err != nil {
		return false, fmt.Errorf("list nodes: %w", err)
	}
	least := version.MustParseGeneric(bundleKubelet)
	for _, node := range nodes.Items {
		kubelet, err := version.ParseGeneric(node.Status.NodeInfo.KubeletVersion)
		if err != nil {
			return false, fmt.Errorf("read the kubelet's version of node %s: %w", node.Name, err)
		}
		if kubelet.LessThan(least) {
			return false, nil
		}
	}
	return len(nodes.Items) > 0, nil
}

// isUnknownKind tells a cluster without the kind from one without the object: the
// client's mapper fails on the former, or the API server's 404 has no name in it.
func isUnknownKind(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) && apierrors.IsNotFound(err) {
		details := status.Status().Details
		return details == nil || details.Name == ""
	}
	return err != nil && meta.IsNoMatchError(err)
}

// SyncClusterBundle makes the mesh's ClusterTrustBundle hold the roots, and
// reports whether it had to be written.
func (t Trust) SyncClusterBundle(ctx context.Context) (bool, error) {
	bundle, err := t.Bundle()
	if err != nil {
		return false, err
	}
	want := &certificatesv1.ClusterTrustBundle{
		ObjectMeta: metav1.ObjectMeta{Name: t.Home.ClusterBundle(), Labels: map[string]string{TrustLabel: t.Home.Mesh}},
		Spec:       certificatesv1.ClusterTrustBundleSpec{TrustBundle: bundle},
	}
	found := &certificatesv1.ClusterTrustBundle{}
	err = t.Home.Client.Get(ctx, client.ObjectKeyFromObject(want), found)
	switch {
	case apierrors.IsNotFound(err):
		err = t.Home.Client.Create(ctx, want)
	case err == nil && found.Spec.TrustBundle == want.Spec.TrustBundle:
		return false, nil
	case err == nil:
		found.Spec.TrustBundle = want.Spec.TrustBundle
		err = t.Home.Client.Update(ctx, found)
	}
	if apierrors.IsAlreadyExists(err) {
		return false, nil // another replica starts too; it is looked at again
	}
	if err != nil {
		return false, fmt.Errorf("keep ClusterTrustBundle %s: %w", want.Name, err)
	}
	return true, nil
}
