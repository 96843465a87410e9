//go:build integration

package main

import (
	"fmt"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestClusterTrustBundle has nodes that mount ClusterTrustBundles. outriggerd writes the
// mesh's, and puts it back when somebody else has changed or deleted it.
func TestClusterTrustBundle(t *testing.T) {
	m := newMesh(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "new"}}
	must(t, m.admin.Create(t.Context(), node))
	node.Status.NodeInfo.KubeletVersion = "v1.37.0"
	must(t, m.admin.Status().Update(t.Context(), node))
	m.outriggerd("", nil, "-webhook-address", "127.0.0.1:0", "-xds-address", "127.0.0.1:0", "-metrics-address", "127.0.0.1:0", "-debug-address", "127.0.0.1:0")

	bundle := &certificatesv1.ClusterTrustBundle{}
	read := func() error {
		return m.admin.Get(t.Context(), client.ObjectKey{Name: "outrigger-outrigger"}, bundle)
	}
	m.eventually("the bundle is there", read)
	roots := bundle.Spec.TrustBundle
	isBack := func() error {
		if err := read(); err != nil {
			return err
		}
		if bundle.Spec.TrustBundle != roots {
			return fmt.Errorf("it holds\n%s\nwant\n%s", bundle.Spec.TrustBundle, roots)
		}
		return nil
	}
	must(t, m.admin.Delete(t.Context(), bundle))
	m.eventually("it is back after it was deleted", isBack)
	bundle.Spec.TrustBundle = string(m.server.Config.CAData) // a stranger's
	must(t, m.admin.Update(t.Context(), bundle))
	m.eventually("it is back after it was changed", isBack)
}
