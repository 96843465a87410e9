//go:build integration

package controller

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-logr/logr/testr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/api"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// TestStatusOnAnAPIServer wants what is wrong with an object in its status, once,
// and gone from it when it is mended; and nothing on objects outside the mesh.
func TestStatusOnAnAPIServer(t *testing.T) {
	t.Parallel()
	here, outside := unique("here"), unique("outside")
	scheme := newScheme(t)
	newPart(t, apiServer.Config, scheme).installPolicy()
	served, err := api.Discover(discovery.NewDiscoveryClientForConfigOrDie(apiServer.Config).ServerResourcesForGroupVersion, apierrors.IsNotFound)
	must(t, err)
	api.AddServed(scheme, served)
	c := newPart(t, apiServer.Config, scheme, here, outside)
	c.namespace(here, nil)
	c.namespace(outside, nil)
	w := NewStatusWriter(StatusWriter{
		Cache: c.informers, Client: c.admin, Served: served, Log: testr.New(t),
		Members: func(context.Context) ([]string, error) { return []string{here}, nil },
	})
	for _, kind := range Watched() {
		_, err := c.informers.GetInformer(t.Context(), kind)
		must(t, err)
	}
	t.Cleanup(c.run(w.Start))

	split := func(namespace, name string) *splitv1alpha4.TrafficSplit {
		return &splitv1alpha4.TrafficSplit{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: splitv1alpha4.TrafficSplitSpec{Service: "a", Backends: []splitv1alpha4.Backend{}}}
	}
	for _, o := range []*splitv1alpha4.TrafficSplit{split(here, "good"), split(here, "bad"), split(outside, "outside")} {
		c.create(o)
		eventually(t, "the cache has it", func() error {
			return c.informers.Get(t.Context(), client.ObjectKeyFromObject(o), &splitv1alpha4.TrafficSplit{})
		})
	}
	state := func(namespace, name string) metav1.Condition {
		o := split(namespace, name)
		if err := c.admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		return current(o.Status.Conditions)
	}
	problem := []ingest.Problem{{Object: ingest.ObjectRef{Kind: "TrafficSplit", Namespace: here, Name: "bad"}, Reason: ingest.ApexNotFound, Message: "there is no a"}}
	w.Problems(problem)
	eventually(t, "both are told", func() error {
		good := state(here, "good")
		bad := state(here, "bad")
		if good.Status != "True" || bad.Status != "False" || bad.Reason != "ApexNotFound" || bad.Message != "there is no a" || bad.ObservedGeneration != 1 {
			return fmt.Errorf("%+v, %+v", good, bad)
		}
		return nil
	})
	w.Problems(problem)
	w.Problems(nil)
	eventually(t, "the bad one is told that it is mended", func() error {
		if bad := state(here, "bad"); bad.Status != "True" {
			return fmt.Errorf("%+v", bad)
		}
		return nil
	})
	if good := state(outside, "outside"); good.Status != "" {
		t.Errorf("an object outside the mesh is told %+v", good)
	}
}
