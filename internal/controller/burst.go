package controller

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Changes come in bursts: a rollout touches pods and slices many times a second.
const (
	quiet   = 20 * time.Millisecond  // act when nothing changed for so long
	longest = 200 * time.Millisecond // act at the latest after so long
)

// A burst gathers changes. It holds at most one signal.
type burst chan struct{}

func newBurst() burst { return make(burst, 1) }

// changed says that something changed. It never blocks.
func (b burst) changed() {
	select {
	case b <- struct{}{}:
	default: // a signal is waiting already
	}
}

// watch signals every change of some kinds until the returned function is called. Of
// ConfigMaps only those with the roots count.
func (b burst) watch(ctx context.Context, from cache.Cache, kinds ...client.Object) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	matters := func(object any) bool {
		m, ok := object.(*corev1.ConfigMap)
		return !ok || m.Name == mesh.TrustConfigMap
	}
	for _, kind := range kinds {
		informer, err := from.GetInformer(ctx, kind)
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
		registration, err := informer.AddEventHandler(toolscache.FilteringResourceEventHandler{FilterFunc: matters, Handler: toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { b.changed() },
			UpdateFunc: func(before, after any) {
				if !sameLabels(before, after) && !onlyStatus(before, after) {
					b.changed()
				}
			},
			DeleteFunc: func(any) { b.changed() },
		}})
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
		stops = append(stops, func() { _ = informer.RemoveEventHandler(registration) })
	}
	return stop, nil
}

// sameLabels reports whether an update means nothing to a kind of which only the
// labels are read: nodes say all the time that they are alive.
func sameLabels(before, after any) bool {
	b, ok := before.(*metav1.PartialObjectMetadata)
	a, too := after.(*metav1.PartialObjectMetadata)
	return ok && too && maps.Equal(b.Labels, a.Labels)
}

// onlyStatus reports whether an object of policy differs in nothing that is read from
// it: its status is what we write ourselves.
func onlyStatus(old, now any) bool {
	switch now.(type) {
	case *accessv1alpha3.TrafficTarget, *specsv1alpha4.HTTPRouteGroup, *specsv1alpha4.TCPRoute, *splitv1alpha4.TrafficSplit:
	default:
		return false
	}
	a, okA := old.(client.Object)
	b, okB := now.(client.Object)
	return okA && okB && a.GetUID() == b.GetUID() && a.GetGeneration() != 0 && a.GetGeneration() == b.GetGeneration() &&
		maps.Equal(a.GetAnnotations(), b.GetAnnotations()) && maps.Equal(a.GetLabels(), b.GetLabels())
}

// gather waits for a change and then for quiet. It reports false when ctx ends.
func (b burst) gather(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-b:
	}
	deadline := time.NewTimer(longest)
	defer deadline.Stop()
	pause := time.NewTimer(quiet)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			return true
		case <-pause.C:
			return true
		case <-b:
			pause.Reset(quiet)
		}
	}
}

// follow passes signals of somebody else on until ctx ends. The channel may be
// nil.
func (b burst) follow(ctx context.Context, signals <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			b.changed()
		}
	}
}
