//go:build integration

package identity

import (
	"context"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestClusterBundleNeedsEveryNode makes nodes of different ages: one that cannot
// mount the bundle is enough to stay with the ConfigMap.
func TestClusterBundleNeedsEveryNode(t *testing.T) {
	home, _ := newHome(t, "cluster-bundle")
	for _, step := range []struct {
		reason, node, kubelet string
		want                  bool
	}{
		{reason: "no node: nothing is known to mount it"},
		{reason: "the first version that mounts it", node: "new", kubelet: "v1.37.0", want: true},
		{reason: "a later one", node: "newer", kubelet: "v1.38.2-eks-1", want: true},
		{reason: "an older one beside them", node: "old", kubelet: "v1.36.9"},
	} {
		if step.node != "" {
			node := &corev1.Node{}
			node.Name = step.node
			must(t, admin(t).Create(t.Context(), node))
			t.Cleanup(func() { must(t, admin(t).Delete(context.WithoutCancel(t.Context()), node)) })
			node.Status.NodeInfo.KubeletVersion = step.kubelet
			must(t, admin(t).Status().Update(t.Context(), node))
		}
		got, err := home.MountsClusterBundles(t.Context())
		must(t, err)
		if got != step.want {
			t.Errorf("%s: %t, want %t", step.reason, got, step.want)
		}
	}
}

// TestClusterBundleIsKept runs with the rights that the chart gives.
func TestClusterBundleIsKept(t *testing.T) {
	home, _ := newHome(t, "cluster-bundle-kept")
	ca, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
	must(t, err)
	trust := Trust{Home: home, Authorities: authoritiesOf(ca)}
	other, err := newCA(trustDomain, ca.authority.root.NotBefore)
	must(t, err)
	bundle := &certificatesv1.ClusterTrustBundle{}
	for _, step := range []struct {
		reason string
		harm   func()
		wrote  bool
	}{
		{reason: "it is made", wrote: true},
		{reason: "it is left alone"},
		{reason: "somebody's other root is taken out", wrote: true, harm: func() {
			bundle.Spec.TrustBundle = string(other[keyRoot])
			must(t, admin(t).Update(t.Context(), bundle))
		}},
	} {
		if step.harm != nil {
			step.harm()
		}
		wrote, err := trust.SyncClusterBundle(t.Context())
		must(t, err)
		must(t, admin(t).Get(t.Context(), client.ObjectKey{Name: home.ClusterBundle()}, bundle))
		want, err := trust.Bundle()
		must(t, err)
		if wrote != step.wrote || bundle.Spec.TrustBundle != want {
			t.Errorf("%s: wrote %t, holds the roots %t", step.reason, wrote, bundle.Spec.TrustBundle == want)
		}
	}
}
