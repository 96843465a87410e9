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
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/manifests"
)

// smiCluster starts an API server with the kinds that a Publisher reads.
func smiCluster(t *testing.T) (client.Client, *runtime.Scheme, *rest.Config) {
	t.Helper()
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, apiextensionsv1.AddToScheme,
		accessv1alpha3.AddToScheme, specsv1alpha4.AddToScheme, splitv1alpha4.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := manifests.Chart.ReadDir("crds")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := manifests.Chart.ReadFile("crds/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := errors.Join(yaml.Unmarshal(text, crd), admin.Create(t.Context(), crd)); err != nil {
			t.Fatalf("create CRD %s: %v", entry.Name(), err)
		}
		eventually(t, crd.Name+" is served", func() error {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(crd), crd); err != nil {
				return err
			}
			for _, c := range crd.Status.Conditions {
				if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
					return nil
				}
			}
			return errors.New("not established")
		})
	}
	return admin, scheme, server.Config
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// TestPublisherFollowsItsOptions holds that neither a change of what only the
// options read, nor a failure to read them, waits for a change of something else.
func TestPublisherFollowsItsOptions(t *testing.T) {
	admin, scheme, config := smiCluster(t)
	informers, err := cache.New(config, cache.Options{Scheme: scheme, DefaultTransform: Trim})
	if err != nil {
		t.Fatal(err)
	}
	var tries atomic.Int32
	var ranges atomic.Pointer[[]netip.Prefix]
	var last atomic.Pointer[mesh.Snapshot]
	ranges.Store(&[]netip.Prefix{})
	publisher := NewPublisher(PublisherConfig{
		Cache: informers, Log: testr.New(t), Metrics: prometheus.NewRegistry(),
		Also: []client.Object{&networkingv1.ServiceCIDR{}},
		Options: func(ctx context.Context) (ingest.Options, error) {
			if tries.Add(1) <= 3 {
				return ingest.Options{}, errors.New("not now")
			}
			var list networkingv1.ServiceCIDRList
			err := informers.List(ctx, &list)
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
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- informers.Start(ctx) }()
	go func() { ended <- publisher.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "a snapshot after failures", func() error {
		if !publisher.Ready() {
			return fmt.Errorf("none after %d tries", tries.Load())
		}
		return nil
	})
	added := netip.MustParsePrefix("10.200.0.0/24")
	if err := admin.Create(t.Context(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{added.String()}},
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a snapshot with the new range", func() error {
		if now := *ranges.Load(); !slices.Contains(now, added) {
			return fmt.Errorf("it has %v", now)
		}
		return nil
	})
	followsNodes(t, admin, &last)
}

// followsNodes holds that a pod's zone is that of its node's labels, also when they
// change.
func followsNodes(t *testing.T, admin client.Client, last *atomic.Pointer[mesh.Snapshot]) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.PodSpec{
			NodeName: "n1", Containers: []corev1.Container{{Name: "app", Image: "app"}},
			InitContainers: []corev1.Container{{Name: "outrigger-proxy", Image: "proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
		},
	}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"outrigger.dev/inject": "enabled"}}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "default"}},
		node, pod,
	} {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, zone := range []string{"a", "b"} {
		node.Labels[corev1.LabelTopologyZone] = zone
		if err := admin.Update(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pod's zone", func() error {
			w, ok := last.Load().Workload(mesh.ProxyID{Namespace: "shop", Pod: "web", UID: string(pod.UID)})
			if !ok || w.Zone != zone || w.Node != "n1" {
				return fmt.Errorf("it is in %q on %q (%v), want zone %q", w.Zone, w.Node, ok, zone)
			}
			return nil
		})
	}
}
