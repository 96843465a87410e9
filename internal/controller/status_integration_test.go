//go:build integration

package controller

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/api"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// TestStatusOnAnAPIServer wants what is wrong with an object in its status, once,
// and gone from it when it is mended; and nothing on objects outside the mesh.
func TestStatusOnAnAPIServer(t *testing.T) {
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	bare, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range api.Kinds() {
		text, err := os.ReadFile("../../manifests/crds/" + name.Group + "_" + name.Resource + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, crd); err != nil {
			t.Fatal(err)
		}
		if err := bare.Create(t.Context(), crd); err != nil {
			t.Fatal(err)
		}
	}
	var served []api.Served
	until(t, "the kinds are served", func() (err error) {
		served, err = api.Discover(discovery.NewDiscoveryClientForConfigOrDie(server.Config).ServerResourcesForGroupVersion, apierrors.IsNotFound)
		return err
	})
	api.AddServed(scheme, served)
	c, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	informers, err := cache.New(server.Config, cache.Options{Scheme: scheme, DefaultTransform: Trim})
	if err != nil {
		t.Fatal(err)
	}
	w := NewStatusWriter(StatusWriter{
		Cache: informers, Client: c, Served: served, Log: testr.New(t),
		Members: func(context.Context) ([]string, error) { return []string{"default"}, nil },
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- informers.Start(ctx) }()
	for _, kind := range Watched() {
		if _, err := informers.GetInformer(ctx, kind); err != nil {
			t.Fatal(err)
		}
	}
	go func() { ended <- w.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})

	split := func(namespace, name string) *splitv1alpha4.TrafficSplit {
		return &splitv1alpha4.TrafficSplit{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: splitv1alpha4.TrafficSplitSpec{Service: "a", Backends: []splitv1alpha4.Backend{}}}
	}
	for _, o := range []*splitv1alpha4.TrafficSplit{split("default", "good"), split("default", "bad"), split("kube-public", "outside")} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		until(t, "the cache has it", func() error {
			return informers.Get(t.Context(), client.ObjectKeyFromObject(o), &splitv1alpha4.TrafficSplit{})
		})
	}
	state := func(namespace, name string) metav1.Condition {
		o := split(namespace, name)
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		return current(o.Status.Conditions)
	}
	problem := []ingest.Problem{{Object: ingest.ObjectRef{Kind: "TrafficSplit", Namespace: "default", Name: "bad"}, Reason: ingest.ApexNotFound, Message: "there is no a"}}
	w.Problems(problem)
	until(t, "both are told", func() error {
		good := state("default", "good")
		bad := state("default", "bad")
		if good.Status != "True" || bad.Status != "False" || bad.Reason != "ApexNotFound" || bad.Message != "there is no a" || bad.ObservedGeneration != 1 {
			return fmt.Errorf("%+v, %+v", good, bad)
		}
		return nil
	})
	w.Problems(problem)
	w.Problems(nil)
	until(t, "the bad one is told that it is mended", func() error {
		if bad := state("default", "bad"); bad.Status != "True" {
			return fmt.Errorf("%+v", bad)
		}
		return nil
	})
	if good := state("kube-public", "outside"); good.Status != "" {
		t.Errorf("an object outside the mesh is told %+v", good)
	}
}

func until(t *testing.T, what string, done func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait until %s: %v", what, err)
		}
		<-tick.C
	}
}
