//go:build integration

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestPublisherFollowsItsOptions holds that neither a change of what only the
// options read, nor a failure to read them, waits for a change of something else.
func TestPublisherFollowsItsOptions(t *testing.T) {
	t.Parallel()
	shop := unique("shop")
	c := newPart(t, apiServer.Config, newScheme(t, accessv1alpha3.AddToScheme, specsv1alpha4.AddToScheme, splitv1alpha4.AddToScheme), shop)
	c.installPolicy()
	var tries atomic.Int32
	var ranges atomic.Pointer[[]netip.Prefix]
	var last atomic.Pointer[mesh.Snapshot]
	ranges.Store(&[]netip.Prefix{})
	publisher := NewPublisher(PublisherConfig{
		Cache: c.informers, Log: testr.New(t), Metrics: prometheus.NewRegistry(),
		Also: []client.Object{&networkingv1.ServiceCIDR{}},
		Options: func(ctx context.Context) (ingest.Options, error) {
			if tries.Add(1) <= 3 {
				return ingest.Options{}, errors.New("not now")
			}
			var list networkingv1.ServiceCIDRList
			err := c.informers.List(ctx, &list)
			opts := ingest.Options{TrustDomain: "cluster.local"}
			for _, cidr := range list.Items {
				opts.ServiceCIDRs = append(opts.ServiceCIDRs, netip.MustParsePrefix(cidr.Spec.CIDRs[0]))
			}
			return opts, err
		},
		Publish: func(_ context.Context, snap *mesh.Snapshot) error {
			ranges.Store(new(snap.Settings().ServiceCIDRs))
			last.Store(snap)
			return nil
		},
		Problems: func([]ingest.Problem) {},
	})
	t.Cleanup(c.run(publisher.Start))
	eventually(t, "a snapshot after failures", func() error {
		if !publisher.Ready() {
			return fmt.Errorf("none after %d tries", tries.Load())
		}
		return nil
	})
	added := netip.MustParsePrefix("10.200.0.0/24")
	c.create(&networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{added.String()}},
	})
	eventually(t, "a snapshot with the new range", func() error {
		if now := *ranges.Load(); !slices.Contains(now, added) {
			return fmt.Errorf("it has %v", now)
		}
		return nil
	})
	c.followsNodes(shop, &last)
}

// followsNodes holds that a pod's zone is that of its node's labels, also when they
// change.
func (p *part) followsNodes(shop string, last *atomic.Pointer[mesh.Snapshot]) {
	p.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "web"},
		Spec: corev1.PodSpec{
			NodeName: "n1", Containers: []corev1.Container{{Name: "app", Image: "app"}},
			InitContainers: []corev1.Container{{Name: "outrigger-proxy", Image: "proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
		},
	}
	p.namespace(shop, inMesh)
	p.create(node, pod)
	for _, zone := range []string{"a", "b"} {
		node.Labels[corev1.LabelTopologyZone] = zone
		if err := p.admin.Update(p.t.Context(), node); err != nil {
			p.t.Fatal(err)
		}
		eventually(p.t, "the pod's zone", func() error {
			w, ok := last.Load().Workload(mesh.ProxyID{Namespace: shop, Pod: "web", UID: string(pod.UID)})
			if !ok || w.Zone != zone || w.Node != "n1" {
				return fmt.Errorf("it is in %q on %q (%v), want zone %q", w.Zone, w.Node, ok, zone)
			}
			return nil
		})
	}
}
